"""Trainers over a few rows for the tests of `lume_unlearn.training.trainer`, and the same training by hand."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lume_unlearn.config import RunConfig
from lume_unlearn.data.contexts import aligned, window
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.encode import Tokens
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model import load
from lume_unlearn.model.forward import Passes
from lume_unlearn.training.run import load_configured, make_trainer
from lume_unlearn.training.teaching import teach
from lume_unlearn.training.trainer import UnlearningTrainer
from tests.conftest import make_model
from tests.unlearn.formulas import FORMULAS, KL_WEIGHT, SEED, Step, Term
from tests.unlearn.rows import nll, with_substitutes

RATE = 1e-3
FORGET_WEIGHT, RETAIN_WEIGHT = 0.7, 1.3


def make_rows(seed: int, lengths: Sequence[tuple[int, int]], vocabulary: int = 400) -> list[Tokens]:
    """Rows of so many tokens, the first so many of which carry no label."""
    drawn = torch.Generator().manual_seed(seed)
    rows = []
    for length, prompt in lengths:
        ids = tuple(torch.randint(2, vocabulary, (length,), generator=drawn).tolist())
        rows.append(Tokens(ids, (IGNORED,) * prompt + ids[prompt:]))
    return rows


def half_labelled(lengths: Sequence[int], seed: int = 1, vocabulary: int = 400) -> list[Tokens]:
    """Rows whose second half, or last token, is labelled."""
    return make_rows(seed, [(length, max(length // 2, 1)) for length in lengths], vocabulary)


# One row is labelled throughout, one has a single labelled token, one is long.
FORGET = make_rows(1, [(6, 0), (9, 8), (40, 10), (17, 9)])
RETAIN = make_rows(2, [(30, 12), (5, 3), (11, 4), (7, 5)])
ANSWERS = make_rows(3, [(3, 0), (4, 0), (9, 0), (2, 0)])
ALTERNATIVE = [
    Tokens(row.input_ids[:prompt] + other.input_ids, (IGNORED,) * prompt + other.input_ids)
    for row, other, prompt in zip(FORGET, ANSWERS, (1, 8, 10, 9), strict=True)
]
ROWS = {"forget": FORGET, "alternative": ALTERNATIVE, "retain": RETAIN}


@cache
def known_model() -> LlamaForCausalLM:
    """A model that has half learned the rows of both sides: a random one has nothing to forget."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = torch.cat([nll(model, row) for row in [*FORGET, *RETAIN]]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.zero_grad()
    return model


def build(folder: Path, method: str, tuning: str = "full", dtype: Any = torch.float64, **options: Any) -> Any:
    """A trainer, by default of three optimiser steps, each over all rows, the linear rate falling from `RATE`.

    Parameters of the method are those of its formula unless given.
    """
    formula, spec = FORMULAS[method], METHODS[method]
    plain: dict[str, Any] = {"epochs": 3, "batch_size": 4, "learning_rate": RATE, "lr_schedule": "linear"}
    plain |= {"warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_tokens": 8192}
    plain |= {"lora_dropout": 0.0, "lora_rank": 4}
    plain |= {"forget_weight": FORGET_WEIGHT, "retain_weight": RETAIN_WEIGHT, "kl_weight": KL_WEIGHT, "seed": SEED}
    plain |= {"precision": "float32", "params": formula.params} | formula.options
    if spec.alternative == "file":
        plain["alternatives"] = "not read here"
    rows = {**ROWS, **options.pop("rows", {})}
    config = RunConfig("not read here", str(folder), method, tuning, **(plain | options))
    plain_model = copy.deepcopy(known_model())
    torch.manual_seed(0)
    with mock.patch.object(load, "load_model", return_value=plain_model):
        model = load_configured(config)
    model.to(dtype)
    sides = Sides(
        rows["forget"],
        rows["retain"] if config.needs_retain else [],
        rows["alternative"] if spec.alternative else [],
        use=spec.uses_forget_rows,
    )
    passes, teacher = Passes(model), None
    if spec.teacher:
        count, size = int(config.params["contexts"]), int(config.params["window"])
        contexts = {
            row: [window(row, size, [])] if size else [aligned(row, other) for other in with_substitutes(row)[:count]]
            for row in sides.forget
        }
        teacher = teach(config, model, passes, sides, contexts)
    return make_trainer(config, model, passes, None, sides, teacher=teacher)


def entries(trainer: UnlearningTrainer) -> list[dict[str, float]]:
    """The logged steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of them."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def steps_of(trainer: UnlearningTrainer) -> list[list[tuple[list[int], list[int]]]]:
    """(forget rows, retain rows) of each step of each phase."""
    if not trainer.phases:
        every = list(range(len(FORGET)))
        return [[(every, every if trainer.config.needs_retain else [])] * int(trainer.config.epochs)]
    return [
        [([f for key in keys for f in key.forget], [r for key in keys for r in key.retain]) for keys in phase]
        for phase in trainer.phases
    ]


def trained_by_hand(trainer: UnlearningTrainer, retain: Term | None) -> tuple[list[dict[str, float]], Any]:
    """What `trainer` is about to do, by hand: the log entries, and the model afterwards."""
    config, formula = trainer.config, FORMULAS[trainer.config.method]
    model, before = copy.deepcopy(trainer.model), copy.deepcopy(trainer.model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found: list[dict[str, float]] = []
    for phase in steps_of(trainer):
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        for number, (forget, kept) in enumerate(phase):
            sides = ([FORGET[i] for i in forget], [ALTERNATIVE[i] for i in forget], [RETAIN[i] for i in kept])
            step = Step(model, before, *sides, config.params)
            losses = [entry["retain_loss"] for entry in found if "retain_loss" in entry]
            terms = {"forget": formula.forget(step)} | ({"retain": retain(step)} if retain else {})
            loss = FORGET_WEIGHT * terms["forget"]
            if retain:
                loss = loss + formula.weight(RETAIN_WEIGHT, losses, config.params) * terms["retain"]
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            rate = optimizer.param_groups[0]["lr"] = RATE * (1 - number / len(phase))
            optimizer.step()
            entry = {f"{name}_loss": term.item() for name, term in terms.items()}
            found.append(entry | {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate})
    assert config.max_grad_norm == 1.0
    return found, model


@contextmanager
def passes_seen() -> Iterator[list[tuple[bool, list[tuple[int, ...]]]]]:
    """Of each forward pass of a whole model: whether it kept a graph to train on, and the token ids of its rows."""
    seen: list[tuple[bool, list[tuple[int, ...]]]] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(module, LlamaForCausalLM) and "pack_lengths" in kwargs:
            ids = kwargs["input_ids"][0].split(list(kwargs["pack_lengths"].lengths))
            seen.append((torch.is_grad_enabled(), [tuple(part.tolist()) for part in ids]))

    handle = torch.nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def counted(seen: list[tuple[bool, list[tuple[int, ...]]]], training: bool) -> Counter[tuple[int, ...]]:
    """How often each of our rows went through the model in training, or before and beside it."""
    ours = {row.input_ids for rows in ROWS.values() for row in rows}
    return Counter(row for with_graph, rows in seen if with_graph == training for row in rows if row in ours)
