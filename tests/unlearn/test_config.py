"""Options: defaults, every fault at once, what a method can and cannot have."""

from dataclasses import fields
from math import inf, nan
from typing import Any

import pytest

from lume_unlearn.config import DEFAULTS, ConfigError, RunConfig
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.methods.spec import RETAIN_TERMS


def needed(method: str) -> dict[str, str]:
    """The options that a method cannot be without."""
    spec = METHODS[method] if method in METHODS else METHODS["npo"]
    return {"alternatives": "f.jsonl"} if spec.alternative == "file" else {}


def config(**options: Any) -> RunConfig:
    method = options.setdefault("method", "npo")
    return RunConfig(**({"model": "m", "output": "o"} | needed(method) | options))


def faults(**options: Any) -> list[str]:
    """What is wrong with these options."""
    with pytest.raises(ConfigError) as caught:
        config(**options)
    return str(caught.value).splitlines()


def test_the_defaults_are_those_of_the_benchmarks_baselines() -> None:
    plain = config()
    assert (plain.epochs, plain.batch_size, plain.loss_on) == (10, 32, "answer")
    assert (plain.lr_schedule, plain.warmup, plain.weight_decay, plain.max_grad_norm) == ("linear", 0.1, 0.01, 1.0)
    assert (plain.forget_weight, plain.retain_weight, plain.kl_weight) == (1.0, 1.0, 1.0)
    assert config(tuning="lora").learning_rate == 1e-4
    for tuning in ("full", "last:2", "modules:mlp"):
        assert config(tuning=tuning).learning_rate == 1e-5
    assert config(tuning="full", learning_rate=0.5).learning_rate == 0.5


# The papers' settings, where they are not the benchmark's; learning rates of a method with all weights, with LoRA.
OWN: dict[str, dict[str, Any]] = {
    "ga": {"retain_term": "none"},
    "gd": {},
    "kl": {"retain_term": "kl"},
    "npo": {"params": {"beta": 0.1}},
    "token-npo": {"retain_term": "nll+kl", "epochs": 20, "batch_size": 4, "kl_weight": 0.5, "params": {"beta": 0.5}},
    "simnpo": {"forget_weight": 0.125, "params": {"beta": 4.5, "margin": 0.0}},
    "dpo": {"params": {"beta": 0.1}},
    "idk-dpo": {"params": {"beta": 0.1}},
    "idk": {},
    "altpo": {"epochs": 2, "rates": (5e-5, 1e-4), "params": {"beta": 0.1}},
    "rmu": {
        "retain_term": "states",
        "epochs": 1,
        "batch_size": 4,
        "retain_weight": 1200.0,
        "lr_schedule": "constant",
        "warmup": 0.0,
        "rates": (5e-5, 1e-4),
        "params": {"layer": 7, "steering": 6.5},
    },
    "undial": {"retain_term": "none", "rates": (1e-4, 1e-4), "params": {"beta": 10.0}},
    "wga": {"epochs": 5, "batch_size": 16, "params": {"beta": 1.0}},
    "satimp": {"epochs": 5, "retain_weight": 0.1, "params": {"beta1": 5.0, "beta2": 1.0}},
    "ceu": {"retain_term": "none", "params": {"skip": 1}},
    "pdu": {"retain_weight": 100.0, "params": {"epsilon": 0.3, "dual_step": 5.0, "dual_warmup": 5.0}},
    "ngdiff": {
        "epochs": 15,
        "lr_schedule": "constant",
        "warmup": 0.0,
        "max_grad_norm": 0.0,
        "rates": (5e-5, 1e-4),
        "params": {"rate_every": 10, "rate_range": 10.0},
    },
    "task-vector": {"retain_term": "none", "params": {"scale": 5.0}},
    "sugd": {
        "epochs": 7,
        "batch_size": 1,
        "retain_weight": 0.5,
        "warmup": 0.0,
        "params": {"chunk": 32, "retain_ratio": 7},
    },
    "agad": {
        "epochs": 3,
        "batch_size": 16,
        "warmup": 0.0,
        "rates": (5e-5, 5e-5),
        "params": {"chunk": 64, "anneal_share": 0.25},
    },
    "selective": {"epochs": 8, "batch_size": 60, "retain_weight": 1.2, "rates": (1.5e-5, 1e-4), "warmup": 0.0},
}


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_each_method_has_the_defaults_of_its_paper(method: str, tuning: str) -> None:
    own = {"retain_term": "nll", "rates": (1e-5, 1e-4), "params": {}} | OWN[method]
    own["learning_rate"] = own.pop("rates")[tuning == "lora"]
    expected = {name: value for name, value in DEFAULTS.items() if name != "learning_rate"} | own
    found = config(method=method, tuning=tuning)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.needs_retain == (own["retain_term"] != "none")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_asked_for_wins_over_a_methods_own(method: str) -> None:
    asked = {"epochs": 3, "batch_size": 5, "learning_rate": 0.5, "max_grad_norm": 2.0}
    asked |= {"forget_weight": 0.0, "retain_weight": 7.0, "kl_weight": 0.0}
    asked |= {} if METHODS[method].phases else {"warmup": 0.25, "lr_schedule": "cosine"}
    found = config(method=method, **asked)
    assert {name: getattr(found, name) for name in asked} == asked


def test_a_parameter_that_is_asked_for_leaves_the_others() -> None:
    assert config(method="satimp", params={"beta2": 3}).params == {"beta1": 5.0, "beta2": 3}
    assert METHODS["satimp"].params["beta2"].default == 1.0


def test_no_parameter_is_called_like_an_option() -> None:
    options = {field.name for field in fields(RunConfig)}
    assert not options & {name for method in METHODS.values() for name in method.params}


BAD = {
    "method": "nop",
    "tuning": "loar",
    "split": "tset",
    "retain_term": "l2",
    "loss_on": "prompt",
    "lr_schedule": "lienar",
    "precision": "fp16",
    "weights": "int8",
    "optimizer": "sgd",
    "reference_copy": "disk",
    "evaluate_every": "step",
    "epochs": 0,
    "batch_size": -1,
    "micro_batch_size": 0,
    "max_tokens": 0,
    "lora_rank": 0,
    "lora_alpha": 0,
    "logging_steps": 0,
    "evaluate_batch_size": 0,
    "forget_weight": -1.0,
    "retain_weight": nan,
    "kl_weight": -0.5,
    "weight_decay": -0.1,
    "max_grad_norm": inf,
    "save_steps": -5,
    "save_total_limit": -1,
    "seed": -1,
    "learning_rate": 0.0,
    "warmup": 1.0,
    "lora_dropout": 1.0,
    "max_length": 1,
}


def test_every_bad_option_is_named_in_one_error() -> None:
    lines = faults(**BAD)
    assert sorted(line.split()[0] for line in lines) == sorted(f"--{name}" for name in BAD)
    assert f"--method 'nop': choose one of {', '.join(METHODS)}" in lines


@pytest.mark.parametrize("name", BAD)
def test_each_bad_option_is_an_error_of_its_own(name: str) -> None:
    (line,) = faults(**{name: BAD[name]})
    assert line.startswith(f"--{name} ")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"forget": "f"}, "--forget: give --retain"),
        ({"retain": "r"}, "--retain: give --forget"),
        ({"retain": "r", "method": "ga"}, "--retain: give --forget"),
        ({"forget": "f", "retain": "r", "data": "d"}, "--data and --forget"),
        ({"forget": "f", "retain": "r", "split": "train"}, "--split train"),
        ({"evaluate_every": "epoch", "forget": "f", "retain": "r"}, "--evaluate_every epoch: the tasks read a data"),
        ({"evaluate_every": "epoch", "best_metric": "lume_mmlu.acc"}, "--best_metric lume_mmlu.acc: TASK.METRIC"),
        ({"evaluate_every": "epoch", "best_metric": "lume_mia"}, "--best_metric lume_mia: TASK.METRIC"),
        ({"tuning": "lora", "weights": "bfloat16"}, "--weights bfloat16: an adapter is small"),
    ],
)
def test_contradictions(options: dict[str, str], fault: str) -> None:
    (line,) = faults(**options)
    assert line.startswith(fault)


def test_a_method_without_retain_term_takes_forget_rows_alone() -> None:
    assert config(method="ga", forget="f").retain is None
    assert config(method="npo", retain_term="none", forget="f").retain is None


NO_TERMS = [(name, term) for name, method in METHODS.items() for term in set(RETAIN_TERMS) - set(method.retain_terms)]


@pytest.mark.parametrize(("method", "term"), sorted(NO_TERMS))
def test_retain_terms_that_a_method_cannot_have(method: str, term: str) -> None:
    known = ", ".join(METHODS[method].retain_terms)
    assert faults(method=method, retain_term=term) == [f"--retain_term {term}: {method} can have {known}"]


@pytest.mark.parametrize("method", METHODS)
def test_retain_terms_that_it_can_have(method: str) -> None:
    assert METHODS[method].retain in METHODS[method].retain_terms
    for term in METHODS[method].retain_terms:
        assert config(method=method, retain_term=term).needs_retain == (term != "none")


def test_only_states_methods_compare_states() -> None:
    assert [name for name, method in METHODS.items() if "states" in method.retain_terms] == ["rmu"]


@pytest.mark.parametrize(
    ("method", "params", "fault"),
    [
        ("ga", {"beta": 0.1}, "--beta 0.1: ga has no such parameter (it has: none)"),
        ("satimp", {"beta": 0.1}, "--beta 0.1: satimp has no such parameter (it has: beta1, beta2)"),
        ("npo", {"epochs": 3}, "--epochs 3: npo has no such parameter (it has: beta)"),
        ("npo", {"beta": -0.1}, "--beta -0.1: must be a number, and not negative"),
        ("npo", {"beta": "much"}, "--beta much: must be a number, and not negative"),
        ("npo", {"beta": None}, "--beta None: must be a number, and not negative"),
        ("npo", {"beta": nan}, "--beta nan: must be a number, and not negative"),
        ("rmu", {"layer": inf}, "--layer inf: must be a number, and not negative"),
        ("rmu", {"layer": nan}, "--layer nan: must be a number, and not negative"),
        ("rmu", {"layer": "last"}, "--layer last: must be a number, and not negative"),
        ("rmu", {"layer": 1.5}, "--layer 1.5: must be a whole number"),
        ("rmu", {"steering": 0}, "--steering 0: must be above 0"),
        ("ceu", {"skip": 0.5}, "--skip 0.5: must be a whole number"),
        ("ngdiff", {"rate_every": 2.5}, "--rate_every 2.5: must be a whole number"),
        ("ngdiff", {"rate_range": 0}, "--rate_range 0: must be above 0"),
        ("sugd", {"chunk": 0}, "--chunk 0: must be above 0"),
        ("sugd", {"retain_ratio": 0.5}, "--retain_ratio 0.5: must be a whole number"),
        ("agad", {"anneal_share": 1.5}, "--anneal_share 1.5: must be at most 1"),
        ("agad", {"anneal_share": 0}, "--anneal_share 0: must be above 0"),
        ("task-vector", {"scale": 0}, "--scale 0: must be above 0"),
    ],
)
def test_parameters_that_cannot_work(method: str, params: dict[str, Any], fault: str) -> None:
    assert faults(method=method, params=params) == [fault]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if "beta" in method.params])
def test_beta_may_be_0_where_it_is_no_divisor(method: str) -> None:
    if method in ("wga", "undial"):
        assert config(method=method, params={"beta": 0}).params == {"beta": 0}
    else:
        assert faults(method=method, params={"beta": 0}) == ["--beta 0: must be above 0"]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ceu", {"skip": 0}),
        ("ngdiff", {"rate_every": 0}),
        ("simnpo", {"margin": 0}),
        ("rmu", {"layer": 0}),
        ("satimp", {"beta1": 0, "beta2": 0}),
        ("pdu", {"epsilon": 0, "dual_step": 0, "dual_warmup": 0}),
        ("agad", {"anneal_share": 1}),
    ],
)
def test_parameters_at_the_edge_that_mean_something(method: str, params: dict[str, float]) -> None:
    found = config(method=method, params=params).params
    assert {name: found[name] for name in params} == params


@pytest.mark.parametrize("method", METHODS)
def test_files_of_alternatives_are_needed_or_useless(method: str) -> None:
    takes = METHODS[method].alternative == "file"
    assert takes == (method in ("dpo", "altpo"))
    line = faults(method=method, alternatives=None if takes else "f.jsonl")[0]
    assert line.startswith(f"--method {method}: name a file by --alternatives" if takes else "--alternatives f.jsonl: ")


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_go_by_phases_need_whole_epochs(method: str) -> None:
    if METHODS[method].phases:
        assert faults(method=method, epochs=1.5) == [f"--epochs 1.5: {method} needs a whole number"]
        assert config(method=method, epochs=2.0).epochs == 2
    else:
        assert config(method=method, epochs=1.5).epochs == 1.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 1.5}, "--epochs 1.5: sugd needs a whole number"),
        ({"lr_schedule": "cosine"}, "--lr_schedule cosine: sugd has a learning rate of its own in each phase"),
        ({"warmup": 0.1}, "--warmup 0.1: sugd has a learning rate of its own in each phase"),
        ({"evaluate_every": "epoch"}, "--evaluate_every epoch: sugd has no epochs over all rows"),
    ],
)
def test_what_a_method_with_phases_decides_itself_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(method="sugd", **options)
    assert str(caught.value).startswith(words)


def test_retain_rows_that_weigh_nothing_take_no_part() -> None:
    assert not config(method="kl", retain_weight=0.0).needs_retain
    assert not config(method="kl", retain_weight=0.0).retain_needs_reference
    assert config(method="kl").retain_needs_reference
    assert not config(method="gd").retain_needs_reference
    assert [config(method=method).needs_reference_forward for method in ("gd", "npo", "kl", "undial")] == [
        False,
        False,
        True,
        True,
    ]
    for method in ("pdu", "selective", "sugd", "agad", "ngdiff"):  # which need them, whatever they weigh
        assert config(method=method, retain_weight=0.0).needs_retain
