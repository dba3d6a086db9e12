"""Reading results files: newest scores, names of models, and scores that cannot be compared or read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval.loggers import EvaluationTracker

from lume_tasks.errors import DataError
from lume_unlearn.report.results import comparability, read_models

Write = Callable[..., Path]


def test_newest_score_of_a_model_counts_and_tasks_of_several_files_are_joined(write_results):
    before = {"lume_task1": {"forget_knowledge": 0.9}, "lume_pii": {"forget_ssn_exact": 0.3}}
    after = {"lume_task1": {"forget_knowledge": 0.1, "retain_knowledge": float("nan")}}
    old, new = write_results("/m/npo/", before, made=1.0), write_results("/m/npo", after, made=2.0)
    (model,) = read_models([str(new), str(old), str(new)])
    assert model.name == "npo"
    assert model.score("lume_task1", "forget_knowledge") == 0.1
    assert model.score("lume_pii", "forget_ssn_exact") == 0.3
    assert model.score("lume_task1", "retain_knowledge") is None
    assert model.interval("lume_task1", "forget_knowledge") is None


def test_models_are_named_by_what_tells_them_apart(write_results):
    scores = {"lume_task1": {"forget_knowledge": 0.5}}
    names = ["/a/npo", "/b/npo", "/b/gd", "/b/gd/checkpoint-7"]
    paths = [write_results(name, scores) for name in names]
    paths.append(write_results("/b/gd", scores, metadata={"lume_split": "validation"}, folder="split"))
    assert [model.name for model in read_models(map(str, paths))] == [
        "/a/npo (split all)",
        "/b/npo (split all)",
        "/b/gd (split all)",
        "gd/checkpoint-7",
        "/b/gd (split validation)",
    ]


def test_scores_taken_while_training_are_in_the_order_of_the_steps(tmp_path):
    content = {"results": {"lume_task1": {"forget_knowledge,none": 0.5}}, "config": {"model_args": None}}
    for place in ("npo/scores/checkpoint-5", "npo/scores/checkpoint-10", "gd/scores/checkpoint-5"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "results_lume.json").write_text(json.dumps(content))
    models = read_models([str(tmp_path)])
    assert [model.name for model in models] == ["gd/checkpoint-5", "npo/checkpoint-5", "npo/checkpoint-10"]


def test_incomparable_scores_are_named(write_results):
    scores = {"lume_task1": {"forget_knowledge": 0.5}}
    digest = {"documents_sha256": "0123456789"}
    one = write_results("/m/one", scores, metadata=digest)
    assert comparability(read_models([str(one), str(write_results("/m/same", scores, metadata=digest))])) == []
    for content, expected in (
        ({"metadata": digest | {"lume_split": "test"}}, "different splits"),
        ({"versions": {"lume_task1": 2.0}}, "version 2.0"),
        ({"n-samples": {"lume_task1": {"effective": 3}}}, "3 rows"),
        ({"metadata": {"documents_sha256": "abc"}}, "SHA-256 abc"),
        ({"metadata": {}}, "SHA-256 unknown"),
    ):
        two = write_results("/m/two", scores, **({"metadata": digest} | content))
        (fault,) = comparability(read_models([str(one), str(two)]))
        assert expected in fault


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gone", "does not exist"),
        ("empty", "no results_*.json in or below it"),
        ("not json", "not a results file of the harness (Expecting value"),
        ("[]", "not a results file of the harness (it has no `results` by task)"),
        (
            '{"results": {"gsm8k": {"acc,none": 1.0}}}',
            "no score of a LUME task; score the model with --tasks lume (its tasks: gsm8k)",
        ),
        ('{"results": {"lume_task1": {"forget_knowledge,none": NaN}}}', "no score of a LUME task"),
    ],
)
def test_what_is_no_results_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "results_x.json"
    if content == "empty":
        path.mkdir()
    elif content != "gone":
        path.write_text(content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        read_models([str(path)])


def test_an_adapter_is_named_in_files_of_the_harness_itself(tmp_path):
    """The name and place that `EvaluationTracker` gives its file today."""
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.log_experiment_args("hf", f"pretrained=base,peft={tmp_path}/npo", "", "", False)
    results = {"results": {"lume_task1": {"forget_knowledge,none": 0.5}}, "config": {"model_args": "pretrained=base"}}
    tracker.save_results_aggregated(results, {"lume_task1": []})
    (model,) = read_models([str(tmp_path / "out")])
    assert (model.name, model.path) == ("npo", str(tmp_path / "npo"))
