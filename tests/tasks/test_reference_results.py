"""Reading the results of a reference model, complete and broken."""

import json

import pytest

from lume_tasks.errors import DataError
from lume_tasks.tasks.reference import reference_samples

DATE = "2026-01-02T03-04-05.678901"
LATER = "2026-01-03T00-00-00.000001"
CONTENT = {
    "results": {"lume_mia": {"loss_auc,none": 0.5}, "lume_score": {"missing,none": "lume_mmlu"}},
    "configs": {"lume_mia": {"metadata": {"version": 1.0, "lume_min_k": 0.4}}},
    "versions": {"lume_mia": 1.0},
}
SAMPLES = [{"doc": {"number": 1}, "loss_auc": [True, -2.0]}, {"doc": {"number": 2, "text": "\u2028"}, "loss_auc": [0]}]


def write(folder, date=DATE, name="results"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in SAMPLES]
    (folder / f"samples_lume_mia_{date}.jsonl").write_text("".join(lines), encoding="utf-8")
    file = folder / f"{name}_{date}.json"
    file.write_text(json.dumps(CONTENT), encoding="utf-8")
    return file


def read(path, task="lume_mia", version=1.0):
    docs, metadata = [{"number": 2}, {"number": 1}], {"lume_reference_results": str(path), "version": version}
    return reference_samples(docs, metadata, task, lambda doc: doc["number"], lambda _: "loss_auc")


def test_a_file_or_a_folder_above_it(tmp_path):
    file = write(tmp_path / "out" / "model", name="retain")  # `--output_path retain.json` writes retain_<date>.json
    for path in (file, file.parent, tmp_path):
        assert read(path) == (SAMPLES[::-1], {"version": 1.0, "lume_min_k": 0.4})
    later = write(tmp_path, LATER)
    (tmp_path / f"samples_lume_mia_{LATER}.jsonl").write_text("")
    assert read(file)[0] == SAMPLES[::-1]  # each results file has the samples of its own run
    with pytest.raises(DataError, match="several results files; name one of them") as error:
        read(tmp_path)
    assert f"\n  {file}" in str(error.value)
    assert f"\n  {later}" in str(error.value)
    with pytest.raises(DataError, match=r"lume_reference_results: .*nowhere does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("samples_lume_mia", None, r"samples_lume_mia_.*\.jsonl is missing: .* with --log_samples"),
        ("samples_lume_mia", b'{"doc": {}}\n{', rf"samples_lume_mia_{DATE}\.jsonl:2: not JSON"),
        ("samples_lume_mia", b'{"doc": 1}', rf"samples_lume_mia_{DATE}\.jsonl:1: not a sample"),
        ("results", b"\xff", "is not a results file of the harness"),
        ("results", b"[]", "is not a results file of the harness"),
        ("results", None, "has no results_"),
    ],
)
def test_broken_results_are_refused_by_name(tmp_path, name, content, message):
    write(tmp_path)
    (file,) = tmp_path.glob(f"{name}_{DATE}.*")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=f"^lume_reference_results: .*{message}"):
        read(tmp_path)


def test_results_of_something_else_are_refused_by_name(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match="has no results of lume_pii; it has: lume_mia"):
        read(tmp_path, task="lume_pii")
    with pytest.raises(DataError, match=r"has lume_mia in version 1\.0, not 2\.0"):
        read(tmp_path, version=2.0)
