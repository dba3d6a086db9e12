"""Reading results files: newest scores, names of models, runs, and scores that cannot be compared or read."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers import EvaluationTracker

from lume_tasks.errors import DataError
from lume_unlearn import cli
from lume_unlearn.report.results import comparability, find_runs, read_models

Write = Callable[..., Path]


def logged_row(number: int) -> dict[str, Any]:
    doc = {"id": f"p{number}qa0", "input": "q", "output": "a"}
    return {"doc_id": number, "doc": doc, "filtered_resps": ["b"], "prompt_hash": f"p{number}", "target_hash": "t"}


def test_newest_score_of_a_model_counts_and_tasks_of_several_files_are_joined(write_results: Write) -> None:
    before = {"lume_task1": {"forget_knowledge": 0.9}, "lume_pii": {"forget_ssn_exact": 0.3}}
    after = {"lume_task1": {"forget_knowledge": 0.1, "retain_knowledge": float("nan")}}
    old, new = write_results("/m/npo", before, made=1.0), write_results("/m/npo", after, made=2.0)
    (model,) = read_models([str(new), str(old), str(new)])
    assert model.name == "npo"
    assert model.score("lume_task1", "forget_knowledge") == 0.1
    assert model.score("lume_pii", "forget_ssn_exact") == 0.3
    assert model.score("lume_task1", "retain_knowledge") is None
    assert model.interval("lume_task1", "forget_knowledge") is None


def test_models_are_named_by_what_tells_them_apart(write_results: Write) -> None:
    scores = {"lume_task1": {"forget_knowledge": 0.5}}
    names = ["/a/npo", "/b/npo", "/b/gd", "/b/gd/checkpoint-7"]
    paths = [write_results(name, scores) for name in names]
    paths.append(write_results("/b/gd", scores, metadata={"lume_split": "validation"}, folder="split"))
    assert [model.name for model in read_models(map(str, paths))] == [
        "/a/npo",
        "/b/npo",
        "/b/gd (split all)",
        "gd/checkpoint-7",
        "/b/gd (split validation)",
    ]


def test_folders_are_searched_in_natural_order(write_results: Write, tmp_path: Path) -> None:
    for step in (10, 9):
        write_results(f"/m/checkpoint-{step}", {"lume_task1": {"forget_knowledge": 0.5}}, folder=f"checkpoint-{step}")
    assert [model.name for model in read_models([str(tmp_path)])] == ["m/checkpoint-9", "m/checkpoint-10"]


def test_checkpoints_are_a_run_from_the_reference_model_to_the_result(write_results: Write, tmp_path: Path) -> None:
    scores = {"lume_task1": {"forget_knowledge": 0.5}}
    run = tmp_path / "npo"
    names = [run / "checkpoint-20", run, run / "checkpoint-10", tmp_path / "base", tmp_path / "other"]
    models = read_models([str(write_results(str(name), scores)) for name in names])
    (found,) = find_runs(models)
    assert (found.unit, [(place, model.name) for place, model in found.points]) == (
        "optimiser step",
        [(10, "npo/checkpoint-10"), (20, "npo/checkpoint-20")],
    )
    assert find_runs(models[:1]) == []  # one checkpoint alone is a model as any other
    run.mkdir()
    record = {
        "config": {"model": str(tmp_path / "base")},
        "history": [{"epoch": 1.0, "step": 10}, {"epoch": 3, "step": 30}],
    }
    (run / "unlearning.json").write_text(json.dumps(record))
    (found,) = find_runs(models)
    assert (found.unit, [(place, model.name) for place, model in found.points]) == (
        "epoch",
        [(0, "base"), (1, "npo/checkpoint-10"), (2, "npo/checkpoint-20"), (3, "npo")],
    )


def test_scores_taken_while_training_are_a_run(tmp_path: Path) -> None:
    for step in (5, 10):
        folder = tmp_path / "npo" / "scores" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        content = {"results": {"lume_task1": {"forget_knowledge,none": 0.5}}, "config": {"model_args": None}}
        (folder / "results_lume.json").write_text(json.dumps(content))
    models = read_models([str(tmp_path)])
    assert [model.name for model in models] == ["npo/checkpoint-5", "npo/checkpoint-10"]
    assert [place for place, _ in find_runs(models)[0].points] == [5, 10]


def test_incomparable_scores_are_named(write_results: Write) -> None:
    scores = {"lume_task1": {"forget_knowledge": 0.5}}
    logged = {"lume_task1": [logged_row(0)]}
    others = {"lume_task1": [logged_row(9)]}
    one = write_results("/m/one", scores, logged)
    assert comparability(read_models([str(one), str(write_results("/m/same", scores, logged))])) == []
    assert comparability(read_models([str(one), str(write_results("/m/unlogged", scores))])) == []
    for content, expected in (
        ({"metadata": {"lume_split": "validation"}}, "splits. all: one; validation: two."),
        ({"versions": {"lume_task1": 2.0}}, "lume_task1 was scored in different versions. 1.0: one; 2.0: two."),
        ({"n-samples": {"lume_task1": {"effective": 3}}}, "lume_task1 was scored on different numbers of rows. 4: one"),
        ({"samples": others}, "lume_task1 was scored on different rows, by the hash of their texts."),
    ):
        models = read_models([str(one), str(write_results("/m/two", scores, **({"samples": logged} | content)))])
        (fault,) = comparability(models)
        assert expected in fault


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not a results file of the harness (Expecting value"),
        ('{"a": 1}\n{"a": 1}\n', "not a results file of the harness"),
        ("[]", "not a results file of the harness (it has no `results` by task)"),
        ('{"results": {"lume_task1": 3}}', "not a results file of the harness (it has no `results` by task)"),
        ('{"results": {"gsm8k": {"acc,none": 1.0}}}', "no score of a LUME task (its tasks: gsm8k)"),
        ('{"results": {"lume_task1": {"forget_knowledge,none": NaN}}}', "no score of a LUME task"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "results_x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        read_models([str(path)])


def test_all_unusable_paths_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "gone"), str(tmp_path / "empty")]) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path / 'gone'}: does not exist" in message
    assert f"{tmp_path / 'empty'}: no results_*.json in or below it" in message


def test_broken_sample_is_named_by_line(write_results: Write) -> None:
    path = write_results("/m/a", {"lume_task1": {"forget_knowledge": 1.0}}, {"lume_task1": [logged_row(0)]})
    (samples,) = path.parent.glob("samples_lume_task1_*.jsonl")
    samples.write_text(f"{json.dumps(logged_row(0))}\n{{")
    with pytest.raises(DataError, match=re.escape(f"{samples}:2: ")):
        read_models([str(path)])[0].samples("lume_task1")


def test_files_of_the_harness_itself_are_read(tmp_path: Path) -> None:
    """The names and places that `EvaluationTracker` gives its files today."""
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.log_experiment_args("hf", f"pretrained=base,peft={tmp_path}/npo", "", "", False)
    sample = {
        "doc_id": 0,
        "doc": {"id": "aqa0", "input": "q", "output": "a"},
        "target": "t",
        "arguments": [["x"]],
        "resps": [["y"]],
        "filtered_resps": ["y"],
        **{f"{what}_hash": what for what in ("doc", "prompt", "target")},
    }
    results = {"results": {"lume_task1": {"forget_knowledge,none": 0.5}}, "config": {"model_args": "pretrained=base"}}
    tracker.save_results_aggregated(results, {"lume_task1": [sample]})
    tracker.save_results_samples("lume_task1", [sample])
    (model,) = read_models([str(tmp_path / "out")])
    assert model.name == "npo"
    assert os.fspath(tmp_path / "npo") == model.path
    assert [logged["doc"]["id"] for logged in model.samples("lume_task1") or []] == ["aqa0"]
