"""The download when things go wrong: damaged bytes, killed and competing processes, a full disk. No network here."""

import errno
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lume_tasks.data import fetch
from lume_tasks.data.checks import check_dir
from lume_tasks.errors import DataError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SPLITS = {"train": (1, 3), "validation": (2,)}


def ids_parquet(ids: list[Any], name: str = "id") -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({name: ids}), buffer)
    return buffer.getvalue()


def published() -> dict[str, bytes]:
    """A small stand-in for both sites: name -> bytes."""
    files = {}
    for side in ("forget", "retain"):
        lines = [
            {"id": f"{side[0]}{n}qa0", "input": f"{side} {n}", "output": "o", "task": "Task1"} for n in range(1, 6)
        ]
        files[f"data/{side}.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
        for split, numbers in SPLITS.items():
            files[f"data/{side}_{split}-00000-of-00001.parquet"] = ids_parquet([f"{side[0]}{n}qa0" for n in numbers])
    for stem in ("member", "nonmember"):
        files[f"mia_data/{stem}.jsonl"] = json.dumps({"document": f"a {stem}"}).encode()
    return files


def stand_in(home: Path, files: dict[str, bytes], seconds: float = 0.0) -> None:
    """Let `fetch` find ``files`` instead of the sites, each after some time; every download is noted in ``asked``."""
    from huggingface_hub import constants

    def download(name: str) -> bytes:
        with (home / "asked").open("a") as log:
            log.write(f"{name}\n")
        time.sleep(seconds)
        return files[name]

    sound = published()
    constants.HF_HOME, constants.HF_HUB_OFFLINE = str(home), False
    fetch.github_bytes = fetch.hub_bytes = download
    fetch.SHA256 = {
        name: hashlib.sha256(sound[name if "/" in name else f"data/{name}"]).hexdigest() for name in fetch.SHA256
    }
    fetch.SPLIT_IDS = {
        (split, side): fetch.ids_digest(f"{side[0]}{n}qa0" for n in numbers)
        for split, numbers in SPLITS.items()
        for side in ("forget", "retain")
    }


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    files = published()
    for name in ("github_bytes", "hub_bytes", "SHA256", "SPLIT_IDS"):
        monkeypatch.setattr(fetch, name, getattr(fetch, name))  # given back afterwards
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    stand_in(tmp_path, files)
    return types.SimpleNamespace(files=files, home=tmp_path, asked=tmp_path / "asked")


def nothing_is_left(home: Path) -> bool:
    return [path for path in (home / "lume").iterdir() if path.suffix != ".lock"] == []


DAMAGES = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
    "a line more": lambda data: data + b"\n{}",
    "CRLF": lambda data: data.replace(b"\n", b"\r\n") + b"\r",
    "BOM": lambda data: b"\xef\xbb\xbf" + data,
    "an error page": lambda data: b"<html>503</html>",
    "a Git LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "compressed": lambda data: gzip.compress(data),
    "a zip archive": lambda data: b"PK\x03\x04" + data,
    "NUL bytes": lambda data: b"\0" * len(data),
}


@pytest.mark.parametrize("name", ["data/forget.jsonl", "mia_data/nonmember.jsonl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_and_not_kept(site: types.SimpleNamespace, name: str, damage: str) -> None:
    sound = site.files[name]
    site.files[name] = DAMAGES[damage](sound)
    with pytest.raises(DataError, match="wrong SHA-256, the download is not kept"):
        fetch.fetch()
    assert nothing_is_left(site.home)
    site.files[name] = sound
    assert check_dir(fetch.fetch()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no readable column id: cannot be read as parquet"),
        (b"PAR1" * 10, "no readable column id: cannot be read as parquet"),
        (ids_parquet(["f1qa0"], "name"), "no readable column id: no text in it"),
        (ids_parquet([1, 3]), 'no readable column id: column "id" holds "whole numbers", not text'),
        (ids_parquet(["f1qa0", None]), "no readable column id: no text in it"),
        (ids_parquet([b"\xff"]), 'no readable column id: column "id" holds "binary", not text'),
        (ids_parquet([{"a": 1}]), 'no readable column id: column "id" holds'),
        (ids_parquet([]), "wrong SHA-256"),
        (ids_parquet(["f1qa0", "f3qa0", "../../x"]), "wrong SHA-256"),
        (ids_parquet(pa.DictionaryArray.from_arrays([0] * 2000, ["x" * 10**6])), "holds 2,000,000,000 bytes of text"),
    ],
)
def test_damaged_splits_are_refused_and_not_kept(site: types.SimpleNamespace, content: bytes, message: str) -> None:
    site.files["data/forget_train-00000-of-00001.parquet"] = content
    with pytest.raises(DataError, match=message):
        fetch.fetch()
    assert nothing_is_left(site.home)


def test_a_body_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 <= size < 2**30
            return b"0" * size

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Endless())
    with pytest.raises(DataError, match="more than 67,108,864 bytes"):
        fetch.github_bytes("data/forget.jsonl")


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_at_any_file_leaves_nothing(
    site: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> None:
    write, written = Path.write_bytes, []

    def fail(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == number:
            write(path, content[:5])
            raise error
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises((DataError, KeyboardInterrupt)) as caught:
        fetch.fetch()
    monkeypatch.setattr(Path, "write_bytes", write)
    assert isinstance(error, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert nothing_is_left(site.home)
    assert check_dir(fetch.fetch()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"rubbish", b"0  /etc/passwd\n0  ../../x\n", b"\n" * 10_000])
def test_damaged_sums_are_refused_or_of_no_effect(site: types.SimpleNamespace, content: bytes) -> None:
    folder = fetch.fetch()
    (folder / "SHA256SUMS").write_bytes(content)
    if content:
        with pytest.raises(DataError, match="was changed after the download"):
            fetch.fetch()
    else:
        assert fetch.fetch() == folder  # the pins remain


def start(home: Path, seconds: float) -> "subprocess.Popen[str]":
    """Fetch in a process of its own, each download taking so long; prints the folder."""
    return subprocess.Popen(
        [sys.executable, __file__, str(home), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_downloads(home: Path, count: int) -> None:
    while not (home / "asked").exists() or len((home / "asked").read_text().splitlines()) < count:
        time.sleep(0.02)


def test_processes_at_once_download_once(tmp_path: Path) -> None:
    running = [start(tmp_path, 0.2) for _ in range(3)]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    folders = {out.strip() for out, _ in outputs}
    assert len(folders) == 1
    assert check_dir(Path(folders.pop())) == []
    assert len((tmp_path / "asked").read_text().splitlines()) == 8


def test_the_next_process_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    first = start(tmp_path, 0.5)
    wait_for_downloads(tmp_path, 3)
    second = start(tmp_path, 0.0)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    out, err = second.communicate()
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 0), err
    assert check_dir(Path(out.strip())) == []


if __name__ == "__main__":
    stand_in(Path(sys.argv[1]), published(), float(sys.argv[2]))
    print(fetch.fetch())
