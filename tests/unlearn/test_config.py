"""Options: defaults, errors that name every wrong option, and what each method allows."""

from dataclasses import fields
from math import inf, nan
from typing import Any, get_args

import pytest

from lume_tasks.data.rows import SPLITS
from lume_unlearn.config import TRANSFORMERS_ATTENTION, RunConfig, Split
from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.spec import RetainTerm
from lume_unlearn.training.arguments import rate_for


def config(**options: Any) -> RunConfig:
    method = options.setdefault("method", "npo")
    needed = {"alternatives": "f.jsonl"} if METHODS[method].alternative == "file" else {}
    return RunConfig(**({"model": "m", "output": "o"} | needed | options))


def faults(**options: Any) -> list[str]:
    """What is wrong with these options."""
    with pytest.raises(ConfigError) as caught:
        config(**options)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("parameters", "full", "lora"),
    [(7e9, 1e-5, 1e-4), (1e9, 1e-5, 1e-4), (135e6, 7.407e-5, 7.407e-4), (13e6, 2e-4, 1e-3)],
)
def test_small_models_have_a_higher_default_learning_rate(parameters: float, full: float, lora: float) -> None:
    assert rate_for(int(parameters), "last:2") == pytest.approx(full, rel=1e-3)
    assert rate_for(int(parameters), "lora") == pytest.approx(lora, rel=1e-3)


def test_an_option_is_the_users_or_the_methods_or_the_packages() -> None:
    plain, own = config(), config(method="token-npo")
    assert (plain.epochs, plain.batch_size, plain.warmup, plain.retain_term) == (10, 32, 0.1, "nll")
    assert (own.epochs, own.batch_size, own.warmup, own.retain_term) == (20, 4, 0.1, "nll+kl")
    assert config(method="token-npo", epochs=3, kl_weight=0.0).kl_weight == 0
    assert [config(tuning=tuning).learning_rate for tuning in ("lora", "full", "last:2")] == [None] * 3
    assert [config(method="altpo", tuning=tuning).learning_rate for tuning in ("lora", "full")] == [None, 5e-5]
    assert config(tuning="full", learning_rate=0.5).learning_rate == 0.5
    assert config(method="satimp", params={"beta2": 3}).params == {"beta1": 5.0, "beta2": 3}
    assert METHODS["satimp"].params["beta2"].default == 1.0


BAD = {
    "tuning": "loar",
    "split": "tset",
    "epochs": 0,
    "batch_size": 1.5,
    "learning_rate": inf,
    "weight_decay": "much",
    "seed": -1,
    "warmup": 1.0,
}


def test_all_values_that_make_no_sense_are_named_together() -> None:
    lines = faults(**BAD)
    assert {line.split()[0] for line in lines} == {f"--{name}" for name in BAD if name != "tuning"}
    assert "--split 'tset': choose one of all, train, validation, test" in lines
    assert "--epochs 0: must be a number above 0" in lines
    with pytest.raises(ConfigError, match=f"^--method 'nop': choose one of {', '.join(METHODS)}$"):
        RunConfig("m", "o", "nop")
    with pytest.raises(ConfigError, match=r"^--relearn_rows 0: must be a whole number above 0$"):
        AuditConfig("m", "o", relearn_rows=0)
    with pytest.raises(ConfigError, match=r"^--top_p 1\.5: must be a share of the probability"):
        AuditConfig("m", "o", top_p=1.5)


def test_choices_are_those_of_the_modules_that_use_them() -> None:
    assert get_args(Split) == ("all", *SPLITS)
    hint = next(field.type for field in fields(RunConfig) if field.name == "attention")
    assert get_args(hint) == ("auto", *TRANSFORMERS_ATTENTION)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"forget": "f"}, "--forget: give --retain"),
        ({"retain": "r", "method": "ga"}, "--retain: give --forget"),
        ({"forget": "f", "retain": "r", "data": "d"}, "--forget: names the rows already"),
        ({"evaluate_every": "epoch", "forget": "f", "retain": "r"}, "--evaluate_every epoch: the tasks read a data"),
        ({"evaluate_every": "epoch", "best_metric": "lume_mmlu.acc"}, "--best_metric lume_mmlu.acc: TASK.METRIC"),
        ({"tuning": "lora", "weights": "bfloat16"}, "--weights bfloat16: an adapter is small"),
        ({"tuning": "lora", "weights": "masters"}, "--weights masters: an adapter is small"),
        ({"compile": True, "gradient_checkpointing": True}, "--compile true: compiles nothing"),
        ({"compile": True, "method": "rmu"}, "--compile true: not supported for rmu, which hooks decoder layers; drop"),
        ({"method": "task-vector", "on_collapse": "rollback"}, "--on_collapse rollback: task-vector makes its weights"),
        ({"method": "task-vector", "evaluate_every": "epoch"}, "--evaluate_every epoch: not supported for task-vector"),
        ({"method": "dpo", "alternatives": None}, "--method dpo: needs --alternatives FILE"),
        ({"alternatives": "f.jsonl"}, "--alternatives f.jsonl: npo does not use them"),
        ({"method": "agad", "epochs": 1.5}, "--epochs 1.5: agad needs a whole number"),
        ({"method": "sugd", "lr_schedule": "cosine"}, "--lr_schedule, --warmup: sugd lets the learning rate fall"),
        ({"method": "ga", "params": {"beta": 0.1}}, "--beta 0.1: ga has no such parameter (it has: none)"),
        ({"params": {"beta": -0.1}}, "--beta -0.1: must be a number, and not negative"),
        ({"params": {"beta": nan}}, "--beta nan: must be a number, and not negative"),
        ({"params": {"beta": 0}}, "--beta 0: must be above 0"),
        ({"method": "rmu", "params": {"layer": 1.5}}, "--layer 1.5: must be a whole number"),
        ({"method": "agad", "params": {"anneal_share": 1.5}}, "--anneal_share 1.5: must be at most 1"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], fault: str) -> None:
    (line,) = faults(**options)
    assert line.startswith(fault)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_allows_its_retain_terms_alone(method: str) -> None:
    allowed = METHODS[method].retain_terms
    for term in get_args(RetainTerm):
        if term in allowed:
            assert config(method=method, retain_term=term).needs_retain == (term != "none")
        else:
            fault = f"--retain_term {term}: {method} can have {', '.join(allowed)}"
            assert faults(method=method, retain_term=term) == [fault]


def test_retain_rows_of_weight_0_take_no_part_unless_the_method_needs_them() -> None:
    assert config(method="kl").retain_needs_reference
    weightless = config(method="kl", retain_weight=0.0)
    assert (weightless.needs_retain, weightless.retain_needs_reference) == (False, False)
    needing = [config(method=method).needs_reference_forward for method in ("gd", "npo", "kl", "undial")]
    assert needing == [False, False, True, True]
    for method in ("pdu", "selective", "sugd", "agad", "ngdiff"):
        assert config(method=method, retain_weight=0.0).needs_retain


def test_the_former_name_of_rollback_warns(caplog: pytest.LogCaptureFixture) -> None:
    assert config(on_collapse="best").on_collapse == config(on_collapse="rollback").on_collapse == "rollback"
    assert caplog.messages == ["--on_collapse best: this word is now rollback; use that one"]
