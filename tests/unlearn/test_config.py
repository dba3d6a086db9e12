"""Options: defaults, errors that name every wrong option, and what each method allows."""

from math import inf, nan
from typing import Any, get_args

import pytest

from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method, RetainTerm
from lume_unlearn.methods.registry import METHODS, method_of
from lume_unlearn.model.load import load_tokenizer, trainable
from lume_unlearn.training.arguments import UNSUPPORTED, UnlearningArguments, default_rate, filled_in
from lume_unlearn.training.supported import require_supported
from tests.conftest import make_model


def arguments(method: Method, tuning: str = "full", **options: Any) -> UnlearningArguments:
    """The arguments that a training of this method would have."""
    return filled_in(UnlearningArguments(output_dir="o", **options), method, trainable(make_model(), tuning))


def faults(**options: Any) -> list[str]:
    """What is wrong with these options."""
    with pytest.raises(ConfigError) as caught:
        supported(**options)
    return str(caught.value).splitlines()


def supported(method: str = "npo", tuning: str = "full", **options: Any) -> None:
    """Raise what `UnlearningTrainer` raises before it computes anything."""
    params = {name: options.pop(name) for name in METHODS[method].params() if name in options}
    alternatives = {"row": ["answer"]} if METHODS[method].needs.alternatives == "file" else None
    given = {"retain": ["row"], "alternatives": alternatives, "substitutes": None, "unseen": None, "base": None}
    given = {name: options.pop(name, value) for name, value in given.items()}
    chosen = method_of(method, **params)
    args = arguments(chosen, tuning, **options)
    model = trainable(make_model(), tuning)
    require_supported(chosen, args, model, [] if args.retain_term == "none" else [args.retain_term], given)


@pytest.mark.parametrize(
    ("parameters", "full", "lora"),
    [(7e9, 1e-5, 1e-4), (1e9, 1e-5, 1e-4), (135e6, 7.407e-5, 7.407e-4), (13e6, 2e-4, 1e-3)],
)
def test_small_models_have_a_higher_default_learning_rate(parameters, full, lora):
    assert default_rate(int(parameters), "full") == pytest.approx(full, rel=1e-3)
    assert default_rate(int(parameters), "lora") == pytest.approx(lora, rel=1e-3)


def test_an_option_is_the_users_or_the_methods_or_the_packages():
    names = ("num_train_epochs", "per_device_train_batch_size", "warmup_steps", "retain_term", "kl_weight")
    found = {name: [getattr(arguments(method_of(name)), option) for option in names] for name in ("npo", "token-npo")}
    assert found == {"npo": [10, 32, 0.1, "nll", 1.0], "token-npo": [20, 4, 0.1, "nll+kl", 0.5]}
    assert arguments(method_of("token-npo"), num_train_epochs=3, kl_weight=0.0).kl_weight == 0
    rates = [arguments(method_of("altpo"), tuning).learning_rate for tuning in ("full", "last:1", "lora")]
    assert rates == [5e-5, 5e-5, 1e-3]
    assert arguments(method_of("npo"), learning_rate=0.5).learning_rate == 0.5


def test_all_values_that_make_no_sense_are_named_together():
    bad = {"num_train_epochs": 0, "per_device_train_batch_size": 1.5, "learning_rate": inf, "max_tokens": 0}
    bad |= {"retain_weight": -0.1, "max_grad_norm": nan, "loss_on": "words", "chat": "false"}
    bad |= {"warmup_steps": "x", "gradient_accumulation_steps": "two", "seed": None}
    lines = faults(**bad)
    assert sorted(line.split()[0] for line in lines) == sorted(f"--{name}" for name in bad)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_trainer_has_but_packed_rows_do_not_allow_is_refused_by_name(name):
    values = {bool: True, int: 2, float: 0.1, str: "fast", str | None: "fast", int | None: 3, float | None: 0.1}
    kind = UnlearningArguments.__dataclass_fields__[name].type
    own = {"train_sampling_strategy": "group_by_length", "dataloader_in_order": False, "parallelism_config": object()}
    value = own[name] if name in own else values[kind]
    assert any(line.startswith(f"--{name}: not supported") for line in faults(**{name: value}))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "--load_best_model_at_end: not supported"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "--lr_scheduler_type reduce_lr_on_plateau: not supported"),
        ({"fp16": True, "bf16": True}, "--fp16: not supported"),
    ],
)
def test_unsupported_options_are_refused_before_trainer_asks_for_another_one(options, fault):
    (line,) = faults(**options)
    assert line.startswith(fault)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"retain": []}, "--retain: the retain term needs retain rows"),
        ({"tuning": "lora", "weights": "bfloat16"}, "--weights bfloat16: an adapter is small"),
        ({"torch_compile": True, "gradient_checkpointing": True}, "--torch_compile: compiles nothing"),
        (
            {"torch_compile": True, "method": "rmu"},
            "--torch_compile: not supported for rmu, which hooks decoder layers",
        ),
        (
            {"method": "task-vector", "on_collapse": "rollback"},
            "--on_collapse rollback: task-vector computes its weights",
        ),
        ({"method": "task-vector", "eval_strategy": "epoch"}, "--eval_strategy: not supported for task-vector"),
        ({"method": "task-vector", "robust": "sam"}, "--robust: not supported for task-vector"),
        ({"method": "rmu", "robust": "path"}, "--robust path: not supported for rmu"),
        ({"method": "dpo", "alternatives": None}, "--method dpo: needs --alternatives FILE"),
        ({"alternatives": {"row": ["answer"]}}, "--alternatives: npo does not use them"),
        ({"substitutes": {}}, "--substitutes: npo has no counterfactual teacher"),
        ({"unseen": ["text"]}, "--unseen: npo does not use these texts"),
        ({"base": "model"}, "--base: npo uses no base model; drop --base"),
        (
            {"method": "swap", "loss_on": "text"},
            "--loss_on text: swap compares answers; drop it (--unseen FILE reads texts",
        ),
        ({"method": "counterfactual", "contexts": 0}, "--contexts 0: the teacher needs contexts or a base model"),
        ({"method": "level", "contexts": 0}, "--contexts 0: level has no target loss; give --unseen FILE"),
        ({"method": "agad", "num_train_epochs": 1.5}, "--num_train_epochs 1.5: agad needs a whole number"),
        (
            {"method": "sugd", "lr_scheduler_type": "cosine"},
            "--lr_scheduler_type, --warmup_steps: sugd lowers the learning rate",
        ),
        ({"optim": "galore_adamw_layerwise"}, "--optim galore_adamw_layerwise: not supported"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch"}, "--lr_scheduler_type greedy: not supported"),
        ({"save_strategy": "best"}, "--save_strategy best"),
        ({"report_to": "wnadb"}, "--report_to wnadb: not known or not installed"),
    ],
)
def test_options_that_cannot_work(options, fault):
    (line,) = faults(**options)
    assert line.startswith(fault)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_allows_its_retain_terms_alone(method):
    allowed = METHODS[method].retain_terms
    for term in get_args(RetainTerm):
        if term in allowed:
            supported(method, retain_term=term)
        else:
            fault = f"--retain_term {term}: {method} supports {', '.join(allowed)}"
            assert faults(method=method, retain_term=term) == [fault]


def test_trust_in_a_models_code_must_be_a_bool(model_dir):
    with pytest.raises(ConfigError, match="--trust_remote_code 'false': must be True or False"):
        load_tokenizer(str(model_dir), trust_remote_code="false")
