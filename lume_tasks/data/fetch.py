"""The published LUME files: downloaded once, checked against pinned SHA-256, kept in the cache of huggingface_hub."""

import hashlib
import io
import json
import tempfile
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from lume_tasks.data.rows import TEXT
from lume_tasks.errors import DataError, first_line

GITHUB_REPO = "amazon-science/lume-llm-unlearning"
GITHUB_REVISION = "b2fa8f9c567715f1e2c6d442213f33b2e9a28fe6"
HUB_REPO = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"

SHA256 = {
    "forget.jsonl": "3a74f30223c35b173664dfea5b1c5939587f1eac868a9764891f30c2c317c381",
    "retain.jsonl": "ec8826a91d9fb9e5a50ba732549e8eff75fc99c2f67d6873d1ea36fd403a003d",
    "mia_data/member.jsonl": "46476d20b21dbab766ef9c06fc519f76f6faf1995ebafdaa4107a667b8e7497d",
    "mia_data/nonmember.jsonl": "55f918ce91c48e67955fe70c423457c2b5d9d0ff6894cca9c9fcd355131d58c3",
}
# A split is its ids, since the rows come from the whole files: SHA-256 of the sorted ids, joined by line feeds.
SPLIT_IDS = {
    ("train", "forget"): "d3bc82aabc7fdf35dd76a9082931a2a2108138ebd6d88b7632ee23c2e972f1fa",
    ("train", "retain"): "be5e3685f84583cdfd3133ebd07510040f589d7bb41c7f63411879965ce63b74",
    ("validation", "forget"): "9073abffc26801f82ffa9f61de8bee3137c5258d630a92dd8b31dbd6d71917ea",
    ("validation", "retain"): "8dd53bd4e735ba05e4696bec54f783c1f4dba3d4a9923098d94083cbbaada214",
}

MOST_DOWNLOADED = 64 * 2**20  # bytes of a file; the largest has 1 MB
SUMS = "SHA256SUMS"  # written last: the mark of a complete folder

BY_HAND = f"""\
By hand: make a directory and name it in the variable LUME_DATA_DIR. Put into it
- forget.jsonl and retain.jsonl from https://github.com/{GITHUB_REPO} (folder data, no token needed;
  these two are enough for lume_task1 to lume_task3),
- mia_data/ and the splits (data/forget_train-*.parquet as train/forget.parquet, and so on) from
  https://huggingface.co/datasets/{HUB_REPO}"""

TOKEN = """\
The hub organisation has at times asked for a token: ask for access on its page, then run `hf auth login` or
set HF_TOKEN."""


def cache_folder() -> Path:
    """The folder of the published files; its name holds the pinned revision."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "lume" / GITHUB_REVISION[:12]


def fetch() -> Path:
    """Return the folder of the published files, laid out as a data directory; download them if it is not there yet.

    Raises:
        DataError: no network, no access, a checksum that differs, or a cache that cannot be written or was changed.
    """
    folder = cache_folder()
    if not (folder / SUMS).is_file():
        _download_once(folder)
    expected = {**_read_sums(folder), **SHA256}
    changed = [name for name, digest in expected.items() if _sha256_of(folder / name) != digest]
    if changed:
        raise DataError(f"{folder} was changed after the download ({', '.join(changed)}): delete it and fetch again")
    return folder


def _download_once(folder: Path) -> None:
    from filelock import FileLock
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DataError(
            f"The published LUME files are not in {folder}, and HF_HUB_OFFLINE forbids to download them.\n"
            f"Run `lume-tasks fetch` once without it.\n{BY_HAND}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / SUMS).is_file():  # another process may have been faster
                _write(folder, _published_files())
    except OSError as error:
        raise DataError(f"The cache {folder} cannot be written: {error}\nSet HF_HOME to a folder of yours.") from error


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write everything beside ``folder``, then move it there: a folder is complete or absent."""
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        built = Path(scratch) / "data"
        for name, data in {**files, SUMS: sums.encode()}.items():
            (built / name).parent.mkdir(parents=True, exist_ok=True)
            (built / name).write_bytes(data)
        if folder.exists():  # without its sums: not ours to keep, not complete
            folder.rename(Path(scratch) / "incomplete")
        built.rename(folder)


def _published_files() -> dict[str, bytes]:
    """Download and check everything: file name -> bytes. Nothing is on disk while a checksum may still fail."""
    files: dict[str, bytes] = {}
    for name, expected in SHA256.items():
        data = hub_bytes(name) if name.startswith("mia_data/") else github_bytes(f"data/{name}")
        _expect(name, hashlib.sha256(data).hexdigest(), expected)
        files[name] = data
    for side in ("forget", "retain"):
        files.update(_split_files(side, files[f"{side}.jsonl"]))
    return files


def _split_files(side: str, whole: bytes) -> dict[str, bytes]:
    """Cut the whole file of one side into train, validation and test (the rest), its lines and their order kept."""
    lines = {json.loads(line)["id"]: line for line in whole.split(b"\n") if line}
    rest = set(lines)
    files = {}
    for split in ("train", "validation"):
        name = f"data/{side}_{split}-00000-of-00001.parquet"
        ids = _parquet_ids(name, hub_bytes(name))
        _expect(f"the ids in {name}", ids_digest(ids), SPLIT_IDS[split, side])
        files[f"{split}/{side}.jsonl"] = _lines_of(lines, set(ids))
        rest -= set(ids)
    files[f"test/{side}.jsonl"] = _lines_of(lines, rest)
    return files


def _lines_of(lines: dict[str, bytes], ids: set[str]) -> bytes:
    return b"".join(line + b"\n" for row_id, line in lines.items() if row_id in ids)


def _parquet_ids(name: str, data: bytes) -> list[str]:
    from lume_tasks.data.parquet import parquet_records

    ids = []
    for _, row, faults in parquet_records(io.BytesIO(data), {"id": TEXT}):
        if faults or not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise DataError(f"{name} of {HUB_REPO} has no readable column id: {''.join(faults[:1]) or 'no text in it'}")
        ids.append(row["id"])
    return ids


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hexadecimal) of the sorted ids, joined by line feeds."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _expect(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"{name}: wrong SHA-256, the download is not kept\n  expected {expected}\n  found    {found}\n"
            f"Try again; if it stays so, the published file has changed.\n{BY_HAND}"
        )


def _read_sums(folder: Path) -> dict[str, str]:
    pairs = (line.partition("  ") for line in (folder / SUMS).read_text(errors="replace").splitlines())
    return {name: digest for digest, _, name in pairs}


def _sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def github_bytes(name: str) -> bytes:
    """Download one file of the GitHub repository at its pinned revision."""
    url = f"https://raw.githubusercontent.com/{GITHUB_REPO}/{GITHUB_REVISION}/{name}"

    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = bytes(response.read(MOST_DOWNLOADED + 1))
        if len(data) > MOST_DOWNLOADED:
            raise ValueError(f"more than {MOST_DOWNLOADED:,} bytes, which is no file of LUME")
        return data

    return _download(read, url)


def hub_bytes(name: str) -> bytes:
    """Download one file of the hub dataset; its content, not its revision, is what is pinned."""
    import huggingface_hub

    def read() -> bytes:
        # A folder of its own, not the hub's cache: a damaged copy there would be served again and again.
        with tempfile.TemporaryDirectory() as scratch:
            path = huggingface_hub.hf_hub_download(HUB_REPO, name, repo_type="dataset", local_dir=scratch)
            return Path(path).read_bytes()

    return _download(read, f"{HUB_REPO}: {name}")


def _download(read: Callable[[], bytes], source: str) -> bytes:
    try:
        return read()
    except Exception as error:  # the hub's client raises classes of its transport library, which changed over time
        raise DataError(_why(error, source)) from error


def _why(error: Exception, source: str) -> str:
    lines = [f"{source} could not be downloaded: {first_line(error)}"]
    status = _http_status(error) or _http_status(error.__cause__)
    if status is None:
        lines.append("Is the network there? Behind a proxy, set HTTPS_PROXY.")
    elif status in (401, 403, 404) and HUB_REPO in source:  # a private repository answers 404
        lines.append(TOKEN)
    return "\n".join([*lines, BY_HAND])


def _http_status(error: BaseException | None) -> int | None:
    """The status behind an error of urllib (``code``) or of the hub's client (``response.status_code``)."""
    return getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
