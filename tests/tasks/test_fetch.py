"""The published files: laid out, checked, downloaded once; every refusal says what to do. No network here."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import types
import urllib.error
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.data import fetch
from lume_tasks.data.checks import check_dir
from lume_tasks.data.files import read_rows
from lume_tasks.errors import DataError

SPLITS = {"train": (1, 3), "validation": (2,)}


def ids_parquet(ids, name="id"):
    buffer = io.BytesIO()
    parquet.write_table(pa.table({name: ids}), buffer)
    return buffer.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def published_files():
    """A small stand-in for both sites: name -> bytes, without a line feed at the end, as published."""
    files = {}
    for side in ("forget", "retain"):
        rows = [
            {"id": f"{side[0]}{n}qa0", "input": f"{side} {n}", "output": "o", "task": "Task1"} for n in (3, 1, 2, 5, 4)
        ]
        files[f"{side}.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
        for split, numbers in SPLITS.items():
            files[f"data/{side}_{split}-00000-of-00001.parquet"] = ids_parquet([f"{side[0]}{n}qa0" for n in numbers])
    for stem in ("member", "nonmember"):
        files[f"mia_data/{stem}.jsonl"] = json.dumps({"document": f"a {stem}"}).encode()
    return files


def stand_in(home, files, set_value, seconds=0.0):
    """Let `fetch` download from ``files``, with pins that fit; each download is noted in the file ``asked``."""

    def download(name):
        with (home / "asked").open("a") as log:
            log.write(f"{name}\n")
        time.sleep(seconds)
        return files[name]

    ids = {
        (split, side): fetch.ids_digest(f"{side[0]}{n}qa0" for n in numbers)
        for split, numbers in SPLITS.items()
        for side in ("forget", "retain")
    }
    set_value("huggingface_hub.constants.HF_HOME", str(home))
    set_value("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    set_value("lume_tasks.data.fetch.download", download)
    set_value("lume_tasks.data.fetch.SHA256", {name: sha256(files[name]) for name in fetch.SHA256})
    set_value("lume_tasks.data.fetch.SPLIT_IDS", ids)


@pytest.fixture
def site(tmp_path, monkeypatch):
    files = published_files()
    stand_in(tmp_path, files, monkeypatch.setattr)
    return types.SimpleNamespace(files=files, home=tmp_path, asked=tmp_path / "asked")


def downloads(home):
    return (home / "asked").read_text().splitlines() if (home / "asked").exists() else []


def left(home):
    return [path.name for path in (home / "lume").iterdir() if path.suffix != ".lock"]


def test_files_are_laid_out_as_a_data_directory_and_downloaded_once(site):
    folder = fetch.fetch()
    assert folder == fetch.fetch() == site.home / "lume/b2fa8f9c5677"
    assert len(downloads(site.home)) == len(set(downloads(site.home))) == 8
    assert check_dir(folder) == []
    assert (folder / "forget.jsonl").read_bytes() == site.files["forget.jsonl"]
    ids = {split: [r.id for r in read_rows(folder / split / "retain.jsonl")] for split in (*SPLITS, "test")}
    assert ids == {"train": ["r3qa0", "r1qa0"], "validation": ["r2qa0"], "test": ["r5qa0", "r4qa0"]}  # in whole order


DAMAGES = [
    ("forget.jsonl", b"", "wrong SHA-256, the download is not kept"),
    ("mia_data/member.jsonl", b"<html>503</html>", "wrong SHA-256, the download is not kept"),
    ("data/forget_train-00000-of-00001.parquet", ids_parquet(["f1qa0", "f4qa0"]), "wrong SHA-256"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES)
def test_damaged_download_is_refused_and_not_kept(site, name, content, message):
    valid = site.files[name]
    site.files[name] = content
    with pytest.raises(DataError, match=message):
        fetch.fetch()
    assert left(site.home) == []
    site.files[name] = valid
    assert check_dir(fetch.fetch()) == []


def test_wrong_checksum_shows_both_and_the_way_by_hand(site):
    right = sha256(site.files["forget.jsonl"])
    site.files["forget.jsonl"] += b"\n"
    with pytest.raises(DataError) as caught:
        fetch.fetch()
    for part in (right, sha256(site.files["forget.jsonl"]), "LUME_DATA_DIR"):
        assert part in str(caught.value)


def test_offline_is_reported_before_any_request(site, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"(?s)HF_HUB_OFFLINE forbids.*lume-tasks fetch.*LUME_DATA_DIR"):
        fetch.fetch()
    assert downloads(site.home) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = fetch.fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch.fetch() == folder


def test_cache_that_cannot_be_written(site):
    (site.home / "lume").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written: .*File exists(?s:.*)HF_HOME"):
        fetch.fetch()


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 5, 10])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_or_interruption_leaves_nothing(site, monkeypatch, number, error):
    write, written = Path.write_bytes, []

    def fail(path, content):
        written.append(path)
        write(path, content[:5] if len(written) == number else content)
        if len(written) == number:
            raise error

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises((DataError, KeyboardInterrupt)) as caught:
        fetch.fetch()
    monkeypatch.setattr(Path, "write_bytes", write)
    assert isinstance(error, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert left(site.home) == []
    assert check_dir(fetch.fetch()) == []


def raising(error):
    def download(*args, **kwargs):
        raise error

    return download


def test_failed_download_says_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(OSError("401 Client Error\nmore")))
    with pytest.raises(
        DataError, match=r"semeval25.*: mia_data/member\.jsonl could not be .*: 401 Client Error\n"
    ) as hub:
        fetch.download("mia_data/member.jsonl")
    monkeypatch.setattr("urllib.request.urlopen", raising(urllib.error.URLError("no route to host")))
    with pytest.raises(DataError, match=r"data/forget\.jsonl could not be .*no route to host") as github:
        fetch.download("forget.jsonl")
    for caught in (hub, github):
        for advice in ("HTTPS_PROXY", "hf auth login", "LUME_DATA_DIR"):
            assert advice in str(caught.value)


def start(home, seconds):
    """Fetch in a process of its own, each download taking so long; it prints the folder."""
    command = [sys.executable, __file__, str(home), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.faults
def test_processes_at_once_download_once(tmp_path):
    running = [start(tmp_path, 0.2) for _ in range(3)]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    (folder,) = {out.strip() for out, _ in outputs}
    assert check_dir(Path(folder)) == []
    assert len(downloads(tmp_path)) == 8


@pytest.mark.skipif("LUME_DATA_DIR" not in os.environ, reason="needs the real data in LUME_DATA_DIR")
def test_pins_are_those_of_the_published_files(tmp_path, monkeypatch):
    real = Path(os.environ["LUME_DATA_DIR"])

    def download(name):
        if not name.endswith(".parquet"):
            return (real / name).read_bytes()
        side, split = name.removeprefix("data/").split("-")[0].split("_")
        return ids_parquet([r.id for r in read_rows(real / split / f"{side}.jsonl")])

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "download", download)
    folder = fetch.fetch()
    for split in ("train", "validation", "test"):
        for side in ("forget", "retain"):
            name = f"{split}/{side}.jsonl"
            assert set(read_rows(folder / name)) == set(read_rows(real / name))


if __name__ == "__main__":
    stand_in(Path(sys.argv[1]), published_files(), pytest.MonkeyPatch().setattr, float(sys.argv[2]))
    print(fetch.fetch())
