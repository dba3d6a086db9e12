"""Download the published LUME files once, check them against pinned SHA-256 and keep them in the Hugging Face cache."""

import hashlib
import io
import json
import tempfile
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from lume_tasks.data.rows import SIDES
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
# The rows of a split come from the whole files, so a split is pinned by its ids: see `ids_digest`.
SPLIT_IDS = {
    ("train", "forget"): "d3bc82aabc7fdf35dd76a9082931a2a2108138ebd6d88b7632ee23c2e972f1fa",
    ("train", "retain"): "be5e3685f84583cdfd3133ebd07510040f589d7bb41c7f63411879965ce63b74",
    ("validation", "forget"): "9073abffc26801f82ffa9f61de8bee3137c5258d630a92dd8b31dbd6d71917ea",
    ("validation", "retain"): "8dd53bd4e735ba05e4696bec54f783c1f4dba3d4a9923098d94083cbbaada214",
}
BY_HAND = f"""\
By hand: make a directory and name it in the variable LUME_DATA_DIR. Put into it
- forget.jsonl and retain.jsonl from https://github.com/{GITHUB_REPO} (folder data, no token needed;
  these two are enough for lume_task1 to lume_task3),
- mia_data/ and the splits (data/forget_train-*.parquet as train/forget.parquet, and so on) from
  https://huggingface.co/datasets/{HUB_REPO}"""

NO_DOWNLOAD = """\
Check the network; if it needs a proxy, set HTTPS_PROXY. The hub organisation may require a token: request
access on its page, then run `hf auth login` or set HF_TOKEN."""


def fetch() -> Path:
    """Return the folder of the published files, laid out as a data directory; download them first if needed.

    Raises:
        DataError: no network, no access, a checksum that differs, or a cache that cannot be written.
    """
    from filelock import FileLock
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "lume" / GITHUB_REVISION[:12]
    if folder.is_dir():
        return folder
    if constants.HF_HUB_OFFLINE:
        raise DataError(
            f"The published LUME files are not in {folder}, and HF_HUB_OFFLINE forbids downloads.\n"
            f"Run `lume-tasks fetch` once without this variable.\n{BY_HAND}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():  # another process may have finished first
                _write(folder, _published_files())
    except OSError as error:
        raise DataError(
            f"The cache {folder} cannot be written: {error}\nSet HF_HOME to a folder that you can write to."
        ) from error
    return folder


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files to a temporary folder, then rename it: ``folder`` is complete or absent."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        built = Path(scratch) / "data"
        for name, data in files.items():
            (built / name).parent.mkdir(parents=True, exist_ok=True)
            (built / name).write_bytes(data)
        built.rename(folder)


def _published_files() -> dict[str, bytes]:
    """Download and check everything: file name -> bytes. Nothing is written before all checksums are right."""
    files: dict[str, bytes] = {}
    for name, expected in SHA256.items():
        files[name] = download(name)
        _expect(name, hashlib.sha256(files[name]).hexdigest(), expected)
    for side in SIDES:
        files.update(_split_files(side, files[f"{side}.jsonl"]))
    return files


def _split_files(side: str, whole: bytes) -> dict[str, bytes]:
    """Split the lines of one side's whole file into train, validation and test (the rest), in their order."""
    from pyarrow import parquet

    lines = {json.loads(line)["id"]: line + b"\n" for line in whole.split(b"\n") if line}
    split_of = dict.fromkeys(lines, "test")
    for split in ("train", "validation"):
        name = f"data/{side}_{split}-00000-of-00001.parquet"
        ids = parquet.ParquetFile(io.BytesIO(download(name))).read()["id"].to_pylist()
        _expect(f"the ids in {name}", ids_digest(ids), SPLIT_IDS[split, side])
        split_of.update(dict.fromkeys(ids, split))
    files = dict.fromkeys((f"{split}/{side}.jsonl" for split in ("train", "validation", "test")), b"")
    for row_id, line in lines.items():
        files[f"{split_of[row_id]}/{side}.jsonl"] += line
    return files


def ids_digest(ids: Iterable[str]) -> str:
    """Return the SHA-256 (hexadecimal) of the sorted ids, joined by line feeds."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _expect(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"{name}: wrong SHA-256, the download is not kept\n  expected {expected}\n  found    {found}\n"
            f"Try again; if the checksum differs again, the published file has changed.\n{BY_HAND}"
        )


def download(name: str) -> bytes:
    """Download a published file: forget.jsonl and retain.jsonl from GitHub, any other from the hub dataset."""
    import huggingface_hub

    on_github = name in ("forget.jsonl", "retain.jsonl")
    url = f"https://raw.githubusercontent.com/{GITHUB_REPO}/{GITHUB_REVISION}/data/{name}"
    try:
        if on_github:
            with urllib.request.urlopen(url, timeout=60) as response:
                return bytes(response.read())
        # Not into the hub's own cache, which would return a damaged copy again and again.
        with tempfile.TemporaryDirectory() as scratch:
            path = huggingface_hub.hf_hub_download(HUB_REPO, name, repo_type="dataset", local_dir=scratch)
            return Path(path).read_bytes()
    except Exception as error:  # the error classes of the hub's client differ between its versions
        source = url if on_github else f"{HUB_REPO}: {name}"
        message = f"{source} could not be downloaded: {first_line(error)}"
        raise DataError(f"{message}\n{NO_DOWNLOAD}\n{BY_HAND}") from error
