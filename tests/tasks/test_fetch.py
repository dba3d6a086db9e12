"""The published files: laid out, checked, downloaded once; every refusal says what to do. No network here."""

import errno
import hashlib
import io
import json
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.data import fetch
from lume_tasks.data.checks import check_dir
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError

SPLITS = {"train": (1, 3), "validation": (2,)}


def ids_parquet(ids):
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"id": ids}), buffer)
    return buffer.getvalue()


def published_files():
    """A small stand-in for both sites: name -> bytes, without a line feed at the end, as published."""
    files = {}
    for side in ("forget", "retain"):
        rows = [Row(f"{side[0]}{n}qa0", f"{side} {n}", "o", "Task1") for n in (3, 1, 2, 5, 4)]
        files[f"{side}.jsonl"] = "\n".join(json.dumps(vars(row)) for row in rows).encode()
        for split, numbers in SPLITS.items():
            files[f"data/{side}_{split}-00000-of-00001.parquet"] = ids_parquet([f"{side[0]}{n}qa0" for n in numbers])
    for stem in ("member", "nonmember"):
        files[f"mia_data/{stem}.jsonl"] = json.dumps({"document": f"a {stem}"}).encode()
    return files


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Let `fetch` download from ``files``, with pins that fit; ``asked`` lists the downloads."""
    files, asked = published_files(), []

    def download(name):
        asked.append(name)
        time.sleep(0.01)
        return files[name]

    ids = {
        (split, side): fetch.ids_digest(f"{side[0]}{n}qa0" for n in numbers)
        for split, numbers in SPLITS.items()
        for side in ("forget", "retain")
    }
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "download", download)
    monkeypatch.setattr(fetch, "SHA256", {name: hashlib.sha256(files[name]).hexdigest() for name in fetch.SHA256})
    monkeypatch.setattr(fetch, "SPLIT_IDS", ids)
    return types.SimpleNamespace(files=files, home=tmp_path, asked=asked)


def left(home):
    return [path.name for path in (home / "lume").iterdir() if path.suffix != ".lock"]


def test_files_are_laid_out_as_a_data_directory_and_downloaded_once(site):
    folder = fetch.fetch()
    assert folder == fetch.fetch() == site.home / "lume/b2fa8f9c5677"
    assert len(site.asked) == len(set(site.asked)) == 8
    assert check_dir(folder) == []
    assert (folder / "forget.jsonl").read_bytes() == site.files["forget.jsonl"]
    ids = {split: [r.id for r in read_rows(folder / split / "retain.jsonl")] for split in (*SPLITS, "test")}
    assert ids == {"train": ["r3qa0", "r1qa0"], "validation": ["r2qa0"], "test": ["r5qa0", "r4qa0"]}  # in whole order


TRAIN = "data/forget_train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("name", "content"), [("forget.jsonl", b"<html>503</html>"), (TRAIN, ids_parquet(["f1qa0", "f4qa0"]))]
)
def test_damaged_download_is_refused_and_not_kept(site, name, content):
    valid = site.files[name]
    site.files[name] = content
    with pytest.raises(DataError, match=r"(?s)wrong SHA-256, the download is not kept.*expected.*LUME_DATA_DIR"):
        fetch.fetch()
    assert left(site.home) == []
    site.files[name] = valid
    assert check_dir(fetch.fetch()) == []


def test_offline_is_reported_before_any_request(site, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"(?s)HF_HUB_OFFLINE forbids.*lume-tasks fetch.*LUME_DATA_DIR"):
        fetch.fetch()
    assert site.asked == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = fetch.fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch.fetch() == folder


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_or_interruption_leaves_nothing(site, monkeypatch, error):
    write, written = Path.write_bytes, []

    def fail(path, content):
        written.append(path)
        write(path, content[:5])
        if len(written) == 5:
            raise error

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises((DataError, KeyboardInterrupt)) as caught:
        fetch.fetch()
    monkeypatch.setattr(Path, "write_bytes", write)
    assert isinstance(error, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert left(site.home) == []
    assert check_dir(fetch.fetch()) == []


def test_failed_download_says_what_to_do(monkeypatch):
    def download(*_, **__):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("urllib.request.urlopen", download)
    for name in ("mia_data/member.jsonl", "forget.jsonl"):
        with pytest.raises(DataError, match=rf"{name} could not be .*: 401 Client Error\n") as caught:
            fetch.download(name)
        for advice in ("HTTPS_PROXY", "hf auth login", "LUME_DATA_DIR"):
            assert advice in str(caught.value)


def test_processes_at_once_download_once(site):
    with ThreadPoolExecutor(3) as pool:  # the lock is on a file, so threads wait as processes do
        (folder,) = set(pool.map(lambda _: fetch.fetch(), range(3)))
    assert check_dir(folder) == []
    assert len(site.asked) == 8


def test_pins_are_those_of_the_published_files(lume_data, tmp_path, monkeypatch):
    def download(name):
        if not name.endswith(".parquet"):
            return (lume_data / name).read_bytes()
        side, split = name.removeprefix("data/").split("-")[0].split("_")
        return ids_parquet([r.id for r in read_rows(lume_data / split / f"{side}.jsonl")])

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "download", download)
    folder = fetch.fetch()
    for split in ("train", "validation", "test"):
        for side in ("forget", "retain"):
            name = f"{split}/{side}.jsonl"
            assert set(read_rows(folder / name)) == set(read_rows(lume_data / name))
