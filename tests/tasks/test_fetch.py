"""The published files: laid out, checked, downloaded once; every refusal says what to do. No network here."""

import hashlib
import io
import json
import os
import threading
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


def rows_of(side):
    return [
        {"id": f"{side[0]}{n}qa0", "input": f"{side} {n}", "output": str(n), "task": "Task1"} for n in (3, 1, 2, 5, 4)
    ]


def jsonl(objects):
    return "\n".join(json.dumps(obj) for obj in objects).encode()  # no line feed at the end, as published


def ids_parquet(ids):
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"id": ids, "task": ["Task1"] * len(ids)}), buffer)
    return buffer.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small stand-in for both sites: name -> bytes, with the pins that fit them; ``asked`` notes each download."""
    files = {f"data/{side}.jsonl": jsonl(rows_of(side)) for side in ("forget", "retain")}
    for stem in ("member", "nonmember"):
        files[f"mia_data/{stem}.jsonl"] = jsonl([{"document": f"a {stem}"}])
    pins = {}
    for side in ("forget", "retain"):
        for split, numbers in (("train", (1, 3)), ("validation", (2,))):
            ids = [f"{side[0]}{n}qa0" for n in numbers]
            files[f"data/{side}_{split}-00000-of-00001.parquet"] = ids_parquet(ids)
            pins[split, side] = sha256("\n".join(ids).encode())
    asked = []

    def download(name):
        asked.append(name)
        return files[name]

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "github_bytes", download)
    monkeypatch.setattr(fetch, "hub_bytes", download)
    monkeypatch.setattr(
        fetch, "SHA256", {name: sha256(files[name if "/" in name else f"data/{name}"]) for name in fetch.SHA256}
    )
    monkeypatch.setattr(fetch, "SPLIT_IDS", pins)
    return types.SimpleNamespace(files=files, asked=asked, home=tmp_path / "home/lume")


def test_the_files_are_laid_out_as_a_data_directory(published):
    folder = fetch.fetch()
    assert folder == published.home / "b2fa8f9c5677"
    assert check_dir(folder) == []
    assert (folder / "forget.jsonl").read_bytes() == published.files["data/forget.jsonl"]
    ids = {
        split: [r.id for r in read_rows(folder / split / "retain.jsonl")] for split in ("train", "validation", "test")
    }
    assert ids == {"train": ["r3qa0", "r1qa0"], "validation": ["r2qa0"], "test": ["r5qa0", "r4qa0"]}  # in whole order


def test_nothing_is_fetched_twice(published):
    assert fetch.fetch() == fetch.fetch()
    assert len(published.asked) == len(set(published.asked)) == 8


def test_two_at_once_fetch_once(published, monkeypatch):
    slow = fetch.github_bytes
    monkeypatch.setattr(fetch, "github_bytes", lambda name: (time.sleep(0.2), slow(name))[1])
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(fetch.fetch())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3
    assert len(published.asked) == 8


def test_a_folder_without_its_sums_is_replaced(published):
    folder = published.home / "b2fa8f9c5677"
    folder.mkdir(parents=True)
    (folder / "old").write_text("x")
    assert fetch.fetch() == folder
    assert not (folder / "old").exists()
    assert sorted(p.name for p in published.home.iterdir()) == ["b2fa8f9c5677", "b2fa8f9c5677.lock"]


def test_a_changed_cache_is_refused(published):
    folder = fetch.fetch()
    (folder / "test/retain.jsonl").write_bytes(b"")
    (folder / "mia_data/member.jsonl").unlink()
    with pytest.raises(DataError, match=r"was changed .*\(mia_data/member\.jsonl, test/retain\.jsonl\): delete it"):
        fetch.fetch()
    member = published.files["mia_data/member.jsonl"]
    (folder / "mia_data/member.jsonl").write_bytes(member + b"\n")
    sums = (folder / "SHA256SUMS").read_text().replace(sha256(member), sha256(member + b"\n"))
    (folder / "SHA256SUMS").write_text(sums.replace(sha256((folder / "test/forget.jsonl").read_bytes()), sha256(b"")))
    with pytest.raises(DataError, match=r"mia_data/member\.jsonl"):  # the pins count, not the sums beside the files
        fetch.fetch()
    (folder / "SHA256SUMS").write_text("rubbish")
    with pytest.raises(DataError, match="was changed"):
        fetch.fetch()


@pytest.mark.parametrize("name", ["data/forget.jsonl", "mia_data/member.jsonl"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(published, name):
    right = sha256(published.files[name])
    published.files[name] += b"\n"
    with pytest.raises(DataError) as caught:
        fetch.fetch()
    message = str(caught.value)
    assert message.startswith(f"{name.removeprefix('data/')}: wrong SHA-256")
    assert right in message
    assert sha256(published.files[name]) in message
    assert "LUME_DATA_DIR" in message
    assert [path for path in published.home.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ids_parquet(["f1qa0", "f4qa0"]), "the ids in .*forget_train.*: wrong SHA-256"),
        (ids_parquet(["f1qa0", "f3qa0", "f3qa0"]), "the ids in .*forget_train.*: wrong SHA-256"),
        (b"not parquet", "forget_train.* has no readable column id"),
    ],
)
def test_other_splits_are_refused(published, data, message):
    published.files["data/forget_train-00000-of-00001.parquet"] = data
    with pytest.raises(DataError, match=message):
        fetch.fetch()
    assert not (published.home / "b2fa8f9c5677").exists()


def test_offline_says_so_before_any_request(published, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"(?s)HF_HUB_OFFLINE forbids.*lume-tasks fetch.*LUME_DATA_DIR"):
        fetch.fetch()
    assert published.asked == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = fetch.fetch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch.fetch() == folder


def test_a_cache_that_cannot_be_written(published):
    published.home.parent.mkdir()
    published.home.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written: .*File exists(?s:.*)HF_HOME"):
        fetch.fetch()


class Refused(OSError):
    def __init__(self, status):
        super().__init__(f"{status} Client Error\nmore")
        self.response = types.SimpleNamespace(status_code=status)


def raising(error, cause=None):
    def download(*args, **kwargs):
        raise error from cause

    return download


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_wants_a_token(monkeypatch, status):
    for error, cause in ((Refused(status), None), (FileNotFoundError("not in the cache"), Refused(status))):
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(error, cause))
        with pytest.raises(DataError, match="could not be downloaded") as caught:
            fetch.hub_bytes("mia_data/member.jsonl")
        assert "hf auth login" in str(caught.value)
        assert "LUME_DATA_DIR" in str(caught.value)


def test_other_failures_do_not_speak_of_a_token(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(Refused(503)))
    monkeypatch.setattr("urllib.request.urlopen", raising(urllib.error.URLError("no route to host")))
    with pytest.raises(DataError, match="503 Client Error") as hub:
        fetch.hub_bytes("mia_data/member.jsonl")
    with pytest.raises(DataError, match=r"no route to host(?s:.*)HTTPS_PROXY") as github:
        fetch.github_bytes("data/forget.jsonl")
    monkeypatch.setattr("urllib.request.urlopen", raising(urllib.error.HTTPError("u", 404, "Not Found", None, None)))
    with pytest.raises(DataError, match="HTTP Error 404: Not Found") as missing:
        fetch.github_bytes("data/forget.jsonl")
    for caught in (hub, github, missing):
        assert "hf auth login" not in str(caught.value)
        assert "LUME_DATA_DIR" in str(caught.value)


def test_what_is_asked_of_the_two_sites(monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(b"from github")

    def hf_hub_download(repo, name, repo_type, local_dir):
        asked.append((repo, name, repo_type))
        path = Path(local_dir) / "file"
        path.write_bytes(b"from the hub")
        return str(path)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    assert fetch.github_bytes("data/forget.jsonl") == b"from github"
    assert fetch.hub_bytes("mia_data/member.jsonl") == b"from the hub"
    assert asked == [
        "https://raw.githubusercontent.com/amazon-science/lume-llm-unlearning/"
        "b2fa8f9c567715f1e2c6d442213f33b2e9a28fe6/data/forget.jsonl",
        (fetch.HUB_REPO, "mia_data/member.jsonl", "dataset"),
    ]


@pytest.mark.skipif("LUME_DATA_DIR" not in os.environ, reason="needs the real data in LUME_DATA_DIR")
def test_the_pins_are_those_of_the_real_files(tmp_path, monkeypatch):
    real = Path(os.environ["LUME_DATA_DIR"])

    def hub_bytes(name):
        if not name.endswith(".parquet"):
            return (real / name).read_bytes()
        side, split = name.removeprefix("data/").split("-")[0].split("_")
        return ids_parquet([r.id for r in read_rows(real / split / f"{side}.jsonl")])

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "github_bytes", lambda name: (real / name.removeprefix("data/")).read_bytes())
    monkeypatch.setattr(fetch, "hub_bytes", hub_bytes)
    folder = fetch.fetch()
    for split in ("train", "validation", "test"):
        for side in ("forget", "retain"):
            name = f"{split}/{side}.jsonl"
            assert set(read_rows(folder / name)) == set(read_rows(real / name))
