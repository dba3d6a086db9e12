"""`score`: rows in memory and from a directory; and scores while training, which keep the best weights."""

import copy
import json
import math
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, EarlyStoppingCallback

from lume_tasks.data.locate import MMLU_VARIABLE
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data, load_data
from lume_tasks.errors import DataError
from lume_tasks.models.hf import LumeHF
from lume_tasks.paths import task_dir
from lume_unlearn.audit.probes import audit
from lume_unlearn.audit.verdict import verdict
from lume_unlearn.errors import ConfigError
from lume_unlearn.forget.forget import forget
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.scoring.score import MEAN, Scores, memorization_tasks, score, tasks_for
from lume_unlearn.training.callbacks.scores import BestScores
from tests.conftest import assert_same_weights, make_rows, make_tokenizer
from tests.unlearn.test_objects import make_trainer

ROWS = ["lume_task1", "lume_task2", "lume_task3"]
SHORT = {"max_gen_toks": 8}
ONE = {"forget": [{"input": "a", "output": "b"}]}


def test_scoring_does_not_change_the_tokenizer(model):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    score(model, tokenizer, ONE, gen_kwargs=SHORT)
    assert tokenizer.pad_token is None


def test_a_missing_tokenizer_is_refused_and_a_limit_of_0_is_none(model, tokenizer, tmp_path):
    data = {"forget": make_rows("f", 2), "retain": make_rows("r", 2)}
    for name in (None, str(tmp_path)):
        uses = [partial(use, model, name, data) for use in (score, audit)]
        uses += [partial(verdict, model, name, before=model, **data), partial(forget, model, name, **data)]
        for use in (*uses, partial(make_trainer, tmp_path, name)):
            with pytest.raises(ConfigError, match=f"^tokenizer {name!r}: pass the model's own"):
                use()
    assert len(score(model, tokenizer, data, gen_kwargs=SHORT, limit=0).answers) == 4


@pytest.mark.parametrize("name", ["org/model", None])
def test_a_name_or_none_instead_of_a_model_is_refused(name, model, tokenizer, tmp_path):
    data = {"forget": make_rows("f", 2), "retain": make_rows("r", 2)}
    uses = [partial(use, name, tokenizer, data) for use in (score, audit)]
    uses += [partial(verdict, name, tokenizer, before=model, **data), partial(forget, name, tokenizer, **data)]
    uses += [partial(make_trainer, tmp_path, tokenizer, name)] if name else []
    named = [("model", use) for use in uses] + [("before", partial(verdict, model, tokenizer, before=name, **data))]
    named += [("base", partial(forget, model, tokenizer, base=name, **data))] if name else []
    for argument, use in named:
        with pytest.raises(ConfigError, match=rf"^{argument} {name!r}: pass a loaded model"):
            use()


def test_a_control_that_is_no_model_is_refused_before_any_model_is_scored(model, tokenizer):
    rows = {"forget": make_rows("f", 2), "retain": make_rows("r", 2)}
    with pytest.raises(ConfigError, match=r"^control 'base': pass a loaded model"):
        verdict(lambda: pytest.fail("loaded"), tokenizer, before=lambda: pytest.fail("loaded"), control="base", **rows)


@pytest.fixture(scope="module")
def person() -> Data:
    """Rows of Task 2 as `lume_pii` needs them."""
    values = ("1990-01-02", "900-12-3456", "555-123-4567", "ada@x.org", "14 Birch Lane, Riga, LV 10001")
    sides = [[Row(f"{side}-qa{i}", f"{side}, {i}?", value, "Task2") for i, value in enumerate(values)] for side in "fr"]
    return Data(*sides)


def test_tasks_are_those_that_the_data_has(data_dir, monkeypatch):
    monkeypatch.delenv(MMLU_VARIABLE, raising=False)
    data = load_data(data_dir)
    assert tasks_for(data) == [*ROWS, "lume_mia", "lume_mmlu", "lume_score"]
    assert tasks_for(Data(make_rows("f", 2), [Row("r-qa0", "a", "b", "x")])) == [
        "lume_task1",
        "lume_rows",
        "lume_score",
    ]
    assert memorization_tasks(data) == [f"lume_memorization_task{i}" for i in (1, 2, 3)]


def test_rows_in_memory_are_scored_as_those_of_a_directory(data_dir, model, tokenizer):
    """Numbers, samples and digests are equal, and the results hold neither rows nor paths of the data."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    data = load_data(data_dir)
    tasks = [*tasks_for(data), *memorization_tasks(data)]
    found = score(model, tokenizer, data, tasks=tasks, gen_kwargs=SHORT, log_samples=True).results
    metadata = {"lume_data_dir": str(data_dir), "tokenizer": tokenizer, "lume_gen_kwargs": True}
    expected = evaluator.simple_evaluate(
        LumeHF(pretrained=model, tokenizer=tokenizer, batch_size=64),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(task_dir()), include_defaults=False, metadata=metadata),
        bootstrap_iters=0,
        gen_kwargs=SHORT,
    )
    for part in ("results", "samples", "versions", "n-samples"):
        assert json.dumps(found[part], default=str) == json.dumps(expected[part], default=str), part
    for task in (*ROWS, "lume_mia"):
        digests = [content["configs"][task]["metadata"]["documents_sha256"] for content in (found, expected)]
        assert digests[0] == digests[1]
        assert "lume_data" not in found["configs"][task]["metadata"]
    assert str(data_dir) not in json.dumps(found, default=str)


def test_dictionaries_of_rows_and_single_sides_are_scored(person, model, tokenizer):
    pii = score(model, tokenizer, person, tasks=["lume_pii"], gen_kwargs=SHORT)
    assert set(pii.rows["forget_ssn_partial"]) == {"f-qa1"}
    rows = {"forget": [{"input": "Who?", "output": "Ada"}], "members": ["a text"], "nonmembers": ["another text"]}
    model.train()
    scores = score(model, tokenizer, rows, gen_kwargs=SHORT)
    assert model.training
    assert scores.means.keys() == {"forget_knowledge", "lume_rows forget_knowledge", "loss_auc", "min_k_plus_plus_auc"}
    assert scores.rows["forget_knowledge"].keys() == scores.answers.keys()
    assert scores.rows["loss_auc"].keys() == {"member document 1", "nonmember document 1"}
    assert "samples" not in scores.results


def test_seed_draws_the_same_samples_and_no_seed_leaves_the_random_state(person, model, tokenizer):
    sampling = SHORT | {"do_sample": True, "temperature": 1.0, "top_k": 0}
    one, again, other = (score(model, tokenizer, person, gen_kwargs=sampling, seed=seed).answers for seed in (0, 0, 1))
    assert one == again != other
    state = torch.get_rng_state()
    score(model, tokenizer, person, limit=1, gen_kwargs=SHORT)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ({"forget": [], "kept": []}, {}, "data: unknown parts kept"),
        ("nowhere", {}, "data nowhere: is not a directory"),
        (ONE, {"tasks": ["lume_mia"]}, "lume_mia: the data in memory has no"),
        (ONE, {"tasks": "lume_mmlu"}, "the data in memory names no MMLU"),
        (ONE | {"members": "one text"}, {}, "data, members: give a list of texts"),
        (ONE, {"tasks": ["lume_x", "lume_rows"]}, "tasks lume_x: there is no such task"),
    ],
)
def test_data_that_cannot_be_scored_is_refused(data, options, said, model, tokenizer):
    with pytest.raises((ConfigError, DataError), match=said):
        score(model, tokenizer, data, **options)


def test_mean_of_the_task_scores_turns_forget_scores_around_and_leaves_out_missing_ones():
    task1 = {"forget_knowledge,none": 0.25, "retain_knowledge,none": 0.5, "forget_regurgitation,none": math.nan}
    results = {"results": {"lume_task1": task1, "lume_score": {"retain_knowledge,none": 0.5}}}
    assert Scores(results).headline() == {"retain knowledge": 0.5, MEAN: 0.625}
    assert Scores({"results": {}}).headline() == {}


def test_fingerprint_is_of_the_loaded_weights_and_names_no_folder(model, model_dir, tmp_path, monkeypatch):
    found = fingerprint(model, str(model_dir))
    assert found == fingerprint(copy.deepcopy(model), "somebody's folder that is gone")
    assert found.keys() == {"sha256", "dtype"}
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert fingerprint(model)["sha256"] != found["sha256"]
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    for path, content in ((repository / "refs/main", commit), (repository / f"snapshots/{commit}/config.json", "{}")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = fingerprint(model, "owner/name")
    assert (hub["repository"], hub["revision"]) == ("owner/name", commit)


OPTIONS: dict[str, Any] = {"tuning": "full", "per_device_train_batch_size": 6, "learning_rate": 1e-2}
OPTIONS |= {"eval_strategy": "epoch", "evaluate_tasks": "lume_task1,lume_mia,lume_score"}
OPTIONS |= {"metric_for_best_model": "lume_mia.loss_auc"}


@pytest.mark.usefixtures("short_answers")
def test_scores_of_each_epoch_and_the_best_weights_without_a_change_of_the_training(make_run, tmp_path):
    output = make_run("gd", **OPTIONS)()
    aucs = {}
    for step in (2, 4):
        path = output / "scores" / f"checkpoint-{step}" / "results_lume.json"
        aucs[step] = json.loads(path.read_text())["results"]["lume_mia"]["loss_auc,none"]
    best = json.loads((output / "best" / "best.json").read_text())
    # A lower AUC is better here, says the task.
    step = min(aucs, key=lambda s: aucs[s])
    assert (best["metric"], best["value"], best["step"]) == ("lume_mia.loss_auc", aucs[step], step)
    assert best["scores"]["lume_mia.loss_auc"] == aucs[step]
    AutoModelForCausalLM.from_pretrained(output / "best")
    assert_same_weights(output, make_run("gd", "plain", **OPTIONS | {"eval_strategy": "no"})())


def scores(aggregate: float | None, *task1: float) -> Scores:
    """Results with this aggregate and these four scores of Task 1."""
    names = [f"{side}_{kind},none" for side in ("forget", "retain") for kind in ("regurgitation", "knowledge")]
    found = {} if aggregate is None else {"task_aggregate,none": aggregate}
    results = {"lume_score": found, "lume_task1": dict(zip(names, task1, strict=True))}
    return Scores({"higher_is_better": {}, "results": results})


@pytest.mark.parametrize(
    ("epochs", "step"),
    [
        ([scores(0.0, 1, 1, 1, 1), scores(0.0, 0.2, 1, 1, 1), scores(0.0, 0.4, 1, 1, 1)], 4),  # by the mean
        ([scores(0.3, 1, 1, 1, 0), scores(0.0, 0, 0, 1, 1), scores(0.3, 1, 1, 1, 0)], 6),  # by the aggregate; later one
        ([scores(None, 1, 1, 1, 1), scores(None, 0, 1, 1, 1), scores(None, 1, 1, 1, 1)], 4),  # a task is missing
    ],
)
def test_the_best_epoch_and_what_is_printed(epochs, step, model_dir, data_dir, tmp_path, command):
    where = ["--model", model_dir, "--data", data_dir, "--output", tmp_path / "out"]
    options = ["--eval_strategy", "epoch", "--num_train_epochs", 3, "--per_device_train_batch_size", 6]
    with mock.patch.object(BestScores, "_score", side_effect=epochs):
        code, out, _ = command("run", "--method", "gd", *where, *options)
    assert code == 0
    printed = out.splitlines()
    assert len([line for line in printed if line.startswith("step ") and "mean of the task scores" in line]) == 3
    kept = json.loads((tmp_path / "out" / "best" / "best.json").read_text())
    assert kept["step"] == step
    assert printed[-1].startswith(f"Best scores: step {step}, kept in {tmp_path / 'out' / 'best'} (")


def test_a_metric_of_a_task_that_is_not_scored_is_refused_before_training(make_run):
    with pytest.raises(
        ConfigError, match=r"--metric_for_best_model lume_mia.loss_auc: must be TASK\.METRIC with a task that"
    ):
        make_run("gd", **OPTIONS | {"evaluate_tasks": "lume_score"})()


def test_a_failing_evaluation_is_a_warning_and_the_model_is_saved(make_run, monkeypatch, caplog):
    monkeypatch.setattr(BestScores, "_score", mock.Mock(side_effect=RuntimeError("out of patience")))
    output = make_run("gd", **OPTIONS)()
    assert caplog.text.count("scoring failed (RuntimeError: out of patience); training continues") == 2
    AutoModelForCausalLM.from_pretrained(output)


@pytest.mark.parametrize(
    ("metric", "values", "epochs"),
    [
        ("lume_score.retain_knowledge", (0.3, 0.4, 0.2, 0.5), 3),
        ("lume_task1.forget_knowledge", (0.3, 0.2, 0.1, 0.1), 4),  # lower is better
        ("lume_task1.forget_knowledge", (0.3, 0.4, 0.2, 0.1), 2),
        ("lume_score.task_aggregate", (None, None, None, None), 4),  # no value, as for rows of one task
    ],
)
def test_transformers_early_stopping_follows_the_scores(metric, values, epochs, tokenizer, tmp_path, monkeypatch):
    task, _, name = metric.partition(".")
    found = [{} if value is None else {f"{name},none": value} for value in values]
    found = [Scores({"higher_is_better": {}, "results": {task: result}}) for result in found]
    monkeypatch.setattr(BestScores, "_score", lambda self, model: found.pop(0))
    options = {"eval_strategy": "epoch", "metric_for_best_model": metric, "num_train_epochs": 4}
    trainer = make_trainer(tmp_path, tokenizer, callbacks=[EarlyStoppingCallback()], **options)
    trainer.train()
    assert trainer.state.epoch == epochs


@pytest.mark.parametrize("options", [{}, {"eval_strategy": "epoch"}, {"metric_for_best_model": "lume_score.x"}])
def test_early_stopping_without_its_arguments_is_refused(options, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, **options)
    trainer.add_callback(EarlyStoppingCallback())
    with pytest.raises(
        ConfigError, match=r"EarlyStoppingCallback compares scores; it needs eval_strategy and metric_for"
    ):
        trainer.train()
