"""Hostile and broken data: every line ends as a row or as an error with file and line; nothing hangs or is dropped."""

import gzip
import json
import math
import os
import socket
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lume_tasks.cli import main
from lume_tasks.data import files, locate
from lume_tasks.data.checks import check_dir
from lume_tasks.data.files import place, read_rows, scan_documents, scan_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError, visible
from lume_unlearn.unlearning import run
from tests.faults.fuzzing import examples
from tests.faults.runs import make_config

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]

EXAMPLES = examples(400)
HOSTILE = "\x1b[31m\x07\r\u202e\u2028\x9b\x00\ud800<script>"


def row(row_id: str = "a1sc1", **changed: Any) -> dict[str, Any]:
    return {"id": row_id, "input": f"the in of {row_id}", "output": "the ö", "task": "Task1"} | changed


def line(row_id: str = "a1sc1", **changed: Any) -> bytes:
    return json.dumps(row(row_id, **changed), ensure_ascii=False).encode(errors="surrogatepass")


SOUND = b"\n".join(line(f"a{number}qa0") for number in range(3)) + b"\n"


def check_accounts(path: Path) -> tuple[dict[int, Row], files.Faults]:
    """Read a file; each line of it has to be a row or to have a fault, unless the whole file has one."""
    found, faults = scan_rows(path)
    for message in place(path.name, faults):
        assert message.isprintable()
    faulty = {number for number, _ in faults}
    if 0 not in faulty:
        content = path.read_bytes().split(b"\n")
        read = max(faulty) if len(faults) > files.MOST_FAULTS else len(content)
        for number, raw in enumerate(content[:read], 1):
            assert number in found or number in faulty or not raw.strip()
    for row_ in found.values():
        "".join(vars(row_).values()).encode()  # nothing that a results file could not hold
        assert row_.kind in ("sc", "qa")
    return found, faults


# name: content, the line that has the fault (0: the file as a whole), what is said of it; None: it is sound
FILES: dict[str, tuple[bytes, int | None, str]] = {
    "sound": (SOUND, None, ""),
    "no line feed at the end": (SOUND[:-1], None, ""),
    "CRLF": (SOUND.replace(b"\n", b"\r\n"), None, ""),
    "blank lines at the end": (SOUND + b"\n \r\n\n", None, ""),
    "10 MB row": (SOUND + line(output="x" * 10_000_000), None, ""),
    "white space in JSON": (SOUND + b"\t " + line() + b" \t\r\n", None, ""),
    "escaped control characters": (SOUND + line(output="\x1b[31m\x07\u2028\u202e\x85"), None, ""),
    "line separators inside a string": (SOUND + line(output="a\u2028b\u0085c\u2029"), None, ""),
    "unknown keys": (line(**{"__proto__": 1, "": [], "constructor": {"a": None}}), None, ""),
    "a float with a million digits": (line()[:-1] + b', "x": 1.' + b"1" * 10**6 + b"}", None, ""),
    "nested, but not too deeply": (line()[:-1] + b', "x": ' + b"[" * 100 + b"]" * 100 + b"}", None, ""),
    "CR alone": (SOUND.replace(b"\n", b"\r"), 1, "Extra data"),
    "form feed line": (line() + b"\n\f\n" + line("a2sc1"), 2, "is blank"),
    "blank first line": (b"\n" + SOUND, 1, "is blank"),
    "two rows on a line": (line() + line("a2sc1"), 1, "Extra data"),
    "no-break space behind": (line() + b"\xc2\xa0", 1, "Extra data"),
    "line separator behind": (line() + "\u2028".encode(), 1, "Extra data"),
    "unit separator behind": (line() + b"\x1f", 1, "Extra data"),
    "UTF-8 BOM": (b"\xef\xbb\xbf" + SOUND, 0, "byte order mark"),
    "BOM in the middle": (SOUND + b"\xef\xbb\xbf" + line(), 4, "BOM"),
    "UTF-16": (SOUND.decode().encode("utf-16"), 0, "is UTF-16"),
    "UTF-16 without BOM": (SOUND.decode().encode("utf-16-le"), 1, "NUL"),
    "UTF-32": (SOUND.decode().encode("utf-32"), 0, "is UTF-16"),
    "Latin-1": (SOUND.decode().encode("latin-1"), 1, "is not valid UTF-8"),
    "UTF-8 cut off": (SOUND + line()[: line().index(b"\xb6")], 4, "is not valid UTF-8"),
    "surrogate as bytes": (line(output="\ud800"), 1, "is not valid UTF-8"),
    "surrogate as escape": (json.dumps(row(output="\ud800")).encode(), 1, "surrogate"),
    "surrogate in the id": (json.dumps(row("\ud800sc1")).encode(), 1, "surrogate"),
    "NUL bytes": (SOUND + b"\0" * 100, 4, "NUL"),
    "NUL as escape": (json.dumps(row(output="a\0")).encode(), 1, "NUL"),
    "10 MB of NUL": (b"\0" * 10_000_000, 1, "NUL"),
    "10 MB without JSON": (b"x" * 10_000_000, 1, "is bad JSON"),
    "10 MB of blank lines": (b"\n" * 10_000_000 + line(), 1, "is blank"),
    "a million bad lines": (b"x\n" * 1_000_000, 1, "is bad JSON"),
    "control character in a string": (line().replace(b"the", b"\x01"), 1, "is bad JSON: Invalid control character"),
    "lists 100,000 deep": (line()[:-1] + b', "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", 1, "nested too deeply"),
    "objects 100,000 deep": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, 1, "nested too deeply"),
    "brackets without end": (b"[" * 10**6, 1, "nested too deeply"),
    "an integer with a million digits": (line()[:-1] + b', "x": ' + b"7" * 10**6 + b"}", 1, "too many digits"),
    "NaN": (line(x=math.nan), 1, "NaN is no JSON"),
    "Infinity": (line(x=-math.inf), 1, "-Infinity is no JSON"),
    "a key twice": (line()[:-1] + b', "id": "a2sc1"}', 1, 'key "id" stands twice'),
    "a key twice, escaped": (line()[:-1] + b', "\\u0069d": "a2sc1"}', 1, 'key "id" stands twice'),
    "a hostile key twice": (line()[:-1] + b', "\\u001b": 1, "\\u001b": 1}', 1, 'key "\\u001b" stands twice'),
    "number for a string": (line(input=5), 1, 'field "input" is a number'),
    "null for a string": (line(output=None), 1, 'field "output" is null'),
    "true for a string": (line(id=True), 1, 'field "id" is true or false'),
    "list for a string": (line(task=["Task1"]), 1, 'field "task" is a list'),
    "white space alone": (line(output=" \u2003\n"), 1, 'field "output" is empty'),
    "hostile id": (line("\x1b[31m\r\u202esc"), 1, 'id "\\u001b[31m\\r\\u202esc" ends neither'),
    "hostile task": (line(task="../../\x1b"), 1, 'task "../../\\u001b" is unknown'),
    "task in the wrong case": (line(task="task1"), 1, "is unknown"),
    "a list": (b"[" + SOUND.replace(b"\n", b",")[:-1] + b"]", 1, "is a list"),
    "an indented file": (json.dumps(row(), indent=1).encode(), 1, "is bad JSON"),
    "single quotes": (str(row()).encode(), 1, "is bad JSON"),
    "CSV": (b"id,input,output,task\n1,2,3,4\n", 1, "is bad JSON"),
    "an error page": (b"<!DOCTYPE html><html><body>404</body></html>", 1, "is bad JSON"),
    "gzip": (gzip.compress(SOUND), 0, "is compressed (gzip): unpack it"),
    "gzip that unfolds to 100 MB": (gzip.compress(b"0" * 100_000_000, 1), 0, "is compressed (gzip)"),
    "zip": (b"PK\x03\x04" + SOUND, 0, "is compressed (zip)"),
    "zstd": (b"(\xb5/\xfd" + SOUND, 0, "is compressed (zstd)"),
    "parquet under another name": (b"PAR1" + os.urandom(0), 0, "is parquet"),
    "empty": (b"", 0, "is empty"),
    "blank": (b" \n\r\n\t", 0, "is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_accepted_or_its_fault_named(tmp_path: Path, name: str) -> None:
    content, where, message = FILES[name]
    path = tmp_path / "forget.jsonl"
    path.write_bytes(content)
    found, faults = check_accounts(path)
    if where is None:
        assert faults == []
        assert len(found) == sum(1 for raw in content.split(b"\n") if raw.strip())
    else:
        assert faults[0][0] == where
        assert message in faults[0][1]
        with pytest.raises(DataError):
            read_rows(path)
        assert len(faults) <= files.MOST_FAULTS + 1


def test_of_a_million_faults_some_are_listed_and_the_rest_is_said(tmp_path: Path) -> None:
    path = tmp_path / "forget.jsonl"
    path.write_bytes(b"x\n" * 30_000)
    assert place("f", scan_rows(path)[1])[-1] == "f:10000: so many faults (10000) that the file was read no further"
    path.write_bytes(b"\n".join([line()] * 10_000))
    assert place("f", scan_rows(path)[1])[-2:] == [
        "f:5001: input and output are those of line 1",
        "f: and 9,998 more faults",
    ]


def test_a_file_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "forget.jsonl"
    for end in range(1, len(SOUND)):
        path.write_bytes(SOUND[:end])
        found, faults = check_accounts(path)
        last = SOUND[:end].count(b"\n") + 1
        assert not faults or {number for number, _ in faults} == {last}
        assert len(found) + bool(faults) == len(SOUND[:end].splitlines())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "id": st.from_regex(r"[a-c]{0,2}(sc|qa)[0-9]", fullmatch=True) | VALUES,
        "input": st.text(st.characters(exclude_categories=())) | VALUES,
        "output": st.sampled_from(["x", "", " ", HOSTILE]) | VALUES,
        "task": st.sampled_from(["Task1", "Task2", "task3"]) | VALUES,
        "more": VALUES,
    },
)


@EXAMPLES
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "forget.jsonl").write_bytes(content)
    check_accounts(tmp_path / "forget.jsonl")


@EXAMPLES
@given(objects=st.lists(NEARLY | VALUES, max_size=5), ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_any_json(tmp_path: Path, objects: list[Any], ascii_only: bool, end: str) -> None:
    """What is accepted are exactly the rows whose four fields are sound, with their strings as they were."""
    path = tmp_path / "forget.jsonl"
    texts = [json.dumps(obj, ensure_ascii=ascii_only) for obj in objects]
    path.write_bytes(end.join(texts).encode(errors="surrogatepass"))
    found, faults = check_accounts(path)
    for number, row_ in found.items():
        assert vars(row_) == {field: objects[number - 1][field] for field in ("id", "input", "output", "task")}
    for number in range(1, len(objects) + 1):
        assert number in found or number in {where for where, _ in faults}


@EXAMPLES
@given(edits=st.lists(st.tuples(st.integers(0, len(SOUND)), st.integers(0, 3), st.binary(max_size=3)), max_size=6))
def test_any_damage_to_a_sound_file(tmp_path: Path, edits: list[tuple[int, int, bytes]]) -> None:
    content = SOUND
    for start, length, new in edits:
        content = content[:start] + new + content[start + length :]
    path = tmp_path / "forget.jsonl"
    path.write_bytes(content)
    found, faults = check_accounts(path)
    if not faults:
        assert len(read_rows(path)) == len(found)
    else:
        with pytest.raises(DataError):
            read_rows(path)


@EXAMPLES
@given(values=st.lists(VALUES, max_size=4))
def test_any_documents(tmp_path: Path, values: list[Any]) -> None:
    path = tmp_path / "member.jsonl"
    path.write_text("\n".join(json.dumps({"document": value}) for value in values))
    found, faults = scan_documents(path)
    assert set(found) | {number for number, _ in faults} >= set(range(1, len(values) + 1))
    assert all(found[number] == values[number - 1] for number in found)


@EXAMPLES
@given(text=st.text(st.characters(exclude_categories=())))
def test_an_error_can_neither_steer_the_terminal_nor_fail_to_be_written(text: str) -> None:
    shown = str(DataError(text))
    shown.encode()
    assert not any((ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 for char in shown)
    assert not set("\u2028\u2029\u202a\u202e\u2066\u200b") & set(shown)
    assert visible(shown) == shown


# ---------------------------------------------------------------------------------------------------------------------
# Files that are none


def test_pipes_devices_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "retain.jsonl").write_bytes(line("r1sc1"))
    (tmp_path / "mmlu/anatomy").mkdir(parents=True)
    os.mkfifo(tmp_path / "forget.jsonl")
    os.mkfifo(tmp_path / "mmlu/anatomy/test-0.parquet")
    (tmp_path / "mmlu/anatomy/test-1.parquet").symlink_to("/dev/zero")
    (tmp_path / "mia_data").mkdir()
    (tmp_path / "mia_data/member.jsonl").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("mia_data/nonmember.jsonl")
    problems = check_dir(tmp_path)
    names = ["mia_data/nonmember.jsonl", "mmlu/anatomy/test-0.parquet", "mmlu/anatomy/test-1.parquet"]
    for name in ["forget.jsonl", "mia_data/member.jsonl", *names]:
        assert f"{name}: is no file but a pipe, socket or device" in problems


def test_folders_and_links_in_the_place_of_files(tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").mkdir()
    (tmp_path / "retain.jsonl").symlink_to(tmp_path / "retain.jsonl")
    (tmp_path / "train").symlink_to(tmp_path / "train")
    (tmp_path / "validation").write_bytes(b"")
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu/loop").symlink_to(tmp_path / "mmlu")
    assert check_dir(tmp_path) == [
        "forget.jsonl: cannot be read: Is a directory",
        "retain.jsonl: is missing (retain.parquet would do as well)",
        "validation/forget.jsonl: is missing (forget.parquet would do as well)",
        "validation/retain.jsonl: is missing (retain.parquet would do as well)",
        "mmlu/loop: holds no test-*.parquet",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_closed_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_bytes(SOUND)
    (tmp_path / "forget.jsonl").chmod(0)
    (tmp_path / "train").mkdir(mode=0)
    problems = check_dir(tmp_path)
    assert "forget.jsonl: cannot be read: Permission denied" in problems
    assert "train/forget.jsonl: cannot be read: Permission denied" in problems


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/data", "a/" * 3000, "\x1b[31m", "a\0b"])
def test_folders_with_impossible_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="metadata lume_data_dir names") as caught:
        locate.data_dir(name)
    assert str(caught.value).isprintable()
    if "\0" not in name:
        monkeypatch.setenv("LUME_MMLU_PATH", name)
        with pytest.raises(DataError, match="the variable LUME_MMLU_PATH names"):
            locate.mmlu_source()


def test_a_file_of_more_than_a_gibibyte_is_not_read(tmp_path: Path) -> None:
    for name in ("forget.jsonl", "forget.parquet"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(files.MOST_BYTES + 1)  # a hole: it takes no space
        with pytest.raises(DataError, match=r"holds 1,073,741,825 bytes of text; at most 1,073,741,824 are read"):
            read_rows(tmp_path / name)


def test_names_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "\x1b[31m\r\u202e\x9b"
    (folder / "mmlu" / "\x1b]0;title\x07").mkdir(parents=True)
    (folder / "forget.jsonl").write_bytes(line("\x1b[2J"))
    assert main(["check", str(folder)]) == 1
    assert main(["check", str(folder / "gone")]) == 1
    out, err = capsys.readouterr()
    assert r"\x1b]0;title\x07" in out
    assert r"\x1b[31m\r\u202e\x9b" in err
    assert all(char == "\n" or char.isprintable() for char in out + err)
    with pytest.raises(DataError) as caught:
        locate.load_rows(folder)
    assert "\x1b" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Splits

FORGET, RETAIN = [line("f1sc1"), line("f2sc1")], [line("r1sc1"), line("r2sc1")]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        (
            "train/forget.jsonl",
            [RETAIN[0]],
            'train/forget.jsonl:1: id "r1sc1" is not among the valid rows of the whole',
        ),
        ("train/forget.jsonl", [line("f1sc1", output="x")], 'train/forget.jsonl:1: id "f1sc1" has another output'),
        ("train/forget.jsonl", [FORGET[0], FORGET[0]], 'train/forget.jsonl:2: id "f1sc1" is already on line 1'),
        ("validation/forget.jsonl", [FORGET[0]], 'validation/forget.jsonl:1: id "f1sc1" is in train/ too'),
        ("validation/retain.jsonl", [RETAIN[1], RETAIN[0]], 'validation/retain.jsonl:2: id "r1sc1" is in train/ too'),
        ("validation/retain.jsonl", [], "validation/retain.jsonl: is empty"),
        ("validation/retain.jsonl", None, "validation/retain.jsonl: is missing"),
        ("validation/retain.parquet", [b"x"], "validation/retain.jsonl: stands beside retain.parquet"),
    ],
)
def test_wrong_splits(tmp_path: Path, file: str, content: list[bytes] | None, problem: str) -> None:
    for folder, (forget, retain) in {
        "": (FORGET, RETAIN),
        "train": (FORGET[:1], RETAIN[:1]),
        "validation": (FORGET[1:], RETAIN[1:]),
    }.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "forget.jsonl").write_bytes(b"\n".join(forget))
        (tmp_path / folder / "retain.jsonl").write_bytes(b"\n".join(retain))
    assert check_dir(tmp_path) == []
    (tmp_path / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / file).write_bytes(b"\n".join(content))
    assert any(found.startswith(problem) for found in check_dir(tmp_path))


def test_ids_are_never_used_as_paths(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run over rows whose ids would lead out of its folder, if anything wrote or read by them."""
    stems = ("../../evil", f"{tmp_path}/evil", "/dev/zero", "a/b", "..", "~", "$HOME", string.printable)
    for side in ("forget", "retain"):
        lines = (line(f"{stem}sc{side == 'retain':d}", input=f"{side} {n}") for n, stem in enumerate(stems))
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{side}.jsonl").write_bytes(b"\n".join(lines))
    here = tmp_path / "here" / "deep"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    before = set(tmp_path.rglob("*"))
    output = run(make_config(inputs, here / "out", data=str(tmp_path / "data"), epochs=1, watch_steps=1))
    usual = run(make_config(inputs, tmp_path / "usual", epochs=1, watch_steps=1))
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (output, usual)]
    assert names[0] == names[1]  # the same files, whatever the ids
    written = {path for path in tmp_path.rglob("*") if output not in path.parents and usual not in path.parents}
    assert written - before == {output, usual}
