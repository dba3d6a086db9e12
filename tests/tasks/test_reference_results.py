"""Results of another model, as the harness writes them, whole and spoilt."""

import json
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.errors import DataError
from lume_tasks.tasks.results import read_reference

DATE = "2026-01-02T03-04-05.678901"
LATER = "2026-01-03T00-00-00.000001"
CONTENT: dict[str, Any] = {
    "results": {
        "lume_mia": {
            "name": "lume_mia",
            "sample_len": 2,
            "loss_auc,none": 0.5,
            "loss_auc_stderr,none": "N/A",
            "mia_score,none": float("nan"),
        },
        "lume_score": {"missing,none": "lume_mmlu"},
    },
    "configs": {"lume_mia": {"metadata": {"version": 1.0, "lume_split": "validation", "lume_min_k": 0.4}}},
    "versions": {"lume_mia": 1.0},
}
SAMPLES = [{"doc": {"number": 1}, "loss_auc": [True, -2.0]}, {"doc": {"number": 1, "text": "é\u2028"}}]


def write(folder: Path, date: str = DATE, name: str = "results") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in SAMPLES]
    (folder / f"samples_lume_mia_{date}.jsonl").write_text("".join(lines), encoding="utf-8")
    file = folder / f"{name}_{date}.json"
    file.write_text(json.dumps(CONTENT), encoding="utf-8")
    return file


@pytest.mark.parametrize("of", [lambda file: file, lambda file: file.parent, lambda file: file.parent.parent])
def test_a_file_or_the_folder_above_it(tmp_path: Path, of: Any) -> None:
    results = read_reference(str(of(write(tmp_path / "out" / "model"))))
    assert results.numbers["lume_mia"]["loss_auc"] == 0.5
    assert set(results.numbers["lume_mia"]) == {"loss_auc", "mia_score"}
    assert results.numbers["lume_score"] == {}
    assert results.metadata["lume_mia"]["lume_min_k"] == 0.4
    assert results.samples("lume_mia", version=1.0, split="validation") == SAMPLES


def test_each_results_file_has_the_samples_of_its_own_run(tmp_path: Path) -> None:
    first, second = write(tmp_path), write(tmp_path, LATER)
    (tmp_path / f"samples_lume_mia_{LATER}.jsonl").write_text('{"doc": {}}\n')
    assert read_reference(str(first)).samples("lume_mia") == SAMPLES
    assert read_reference(str(second)).samples("lume_mia") == [{"doc": {}}]
    with pytest.raises(DataError, match="several results files; name one of them") as error:
        read_reference(str(tmp_path))
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


def test_what_leads_to_no_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lume_reference_results: .*nowhere does not exist"):
        read_reference(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="has no results_"):
        read_reference(str(tmp_path))
    with pytest.raises(DataError, match="has to be a path, not 3"):
        read_reference(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", ["", "not JSON", "[]", "{}", '{"results": 3}', '{"results": {"lume_mia": 1}}', "\ud800"]
)
def test_what_is_no_results_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"other\.json is not a results file of the harness"):
        read_reference(str(file))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"task": "lume_pii"}, "has no results of lume_pii; it has: lume_mia, lume_score"),
        ({"version": 2.0}, "has lume_mia in version 1.0, not 2.0"),
        ({"split": "all"}, "is of split validation, not all"),
    ],
)
def test_results_of_something_else_are_refused(tmp_path: Path, wanted: dict[str, Any], message: str) -> None:
    results = read_reference(str(write(tmp_path)))
    with pytest.raises(DataError, match=message):
        results.samples(**{"task": "lume_mia"} | wanted)


def test_missing_samples_say_how_to_get_them(tmp_path: Path) -> None:
    file = write(tmp_path)
    (tmp_path / f"samples_lume_mia_{DATE}.jsonl").unlink()
    with pytest.raises(DataError, match=rf"samples_lume_mia_{DATE}\.jsonl is missing.*--log_samples"):
        read_reference(str(file)).samples("lume_mia")


@pytest.mark.parametrize(
    ("line", "message"),
    [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "not a sample"), (b'{"doc": 1}', "not a sample")],
)
def test_a_broken_sample_is_named_by_line(tmp_path: Path, line: bytes, message: str) -> None:
    file = write(tmp_path)
    samples = tmp_path / f"samples_lume_mia_{DATE}.jsonl"
    samples.write_bytes(samples.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=rf"lume_reference_results: .*samples_lume_mia_{DATE}\.jsonl:3: {message}"):
        read_reference(str(file)).samples("lume_mia")
