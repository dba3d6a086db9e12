"""Trainers over a few rows for the tests of `lume_unlearn.training.trainer`, and the same training by hand."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lume_tasks.data.rows import Row
from lume_unlearn.data import examples
from lume_unlearn.data.contexts import Context, aligned
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.imitations import Imitation, Persons
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.registry import method_of
from lume_unlearn.model import load
from lume_unlearn.training.arguments import UnlearningArguments, is_adapted
from lume_unlearn.training.trainer import UnlearningTrainer
from tests.conftest import make_model
from tests.unlearn.formulas import FORMULAS, KL_WEIGHT, SEED, Step, Term
from tests.unlearn.rows import made_up, make_rows, nll, own_mask, with_substitutes

RATE = 1e-3
FORGET_WEIGHT, RETAIN_WEIGHT = 0.7, 1.3


# One row is labelled throughout, one has a single labelled token, one is long.
FORGET = make_rows(1, [(6, 0), (9, 8), (40, 10), (17, 9)])
RETAIN = make_rows(2, [(30, 12), (5, 3), (11, 4), (7, 5)])
ANSWERS = make_rows(3, [(3, 0), (4, 0), (9, 0), (2, 0)])
ALTERNATIVE = [
    Tokens(row.input_ids[:prompt] + other.input_ids, (IGNORED,) * prompt + other.input_ids)
    for row, other, prompt in zip(FORGET, ANSWERS, (1, 8, 10, 9), strict=True)
]
CONTROL = []
for row, other in zip(FORGET, RETAIN, strict=True):
    ids = (other.input_ids[1], *row.input_ids[1:-1], other.input_ids[0])
    CONTROL.append(Tokens(ids, (IGNORED, *row.labels[1:-1], ids[-1])))
QUANTILES = [0.5, 0.375, 0.625, 0.3125]
"""Of the rows of FORGET."""
ROWS = {"forget": FORGET, "control": CONTROL, "alternative": ALTERNATIVE, "retain": RETAIN}


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


def row_of(side: str, index: int, answer: str = "answer") -> Row:
    """The row that stands for encoded row ``index`` of a side."""
    return Row(f"{side}-{index}-qa0", f"{side} question {index}", f"{answer} {index}", "Task1")


class TokenTrainer(UnlearningTrainer):
    """A trainer of rows that are encoded already, without a monitor; ``encoded`` has them by side."""

    def __init__(
        self, model: Any, method: Any, args: Any, encoded: dict[str, Sequence[Tokens]], **options: Any
    ) -> None:
        """Rows of ``encoded`` take the place of what a tokenizer would make of `row_of` them."""
        known = {}
        sides = {"forget": "answer", "control": "answer", "retain": "answer", "alternative": "other"}
        for side, answer in sides.items():
            for index, tokens in enumerate(encoded[side]):
                row = row_of("forget" if side == "alternative" else side, index, answer)
                known[row.input, row.output] = tokens
        forget, retain = ([row_of(side, index) for index in range(len(encoded[side]))] for side in ("forget", "retain"))
        if method.needs.alternatives == "file":
            options["alternatives"] = {row.id: [f"other {i}"] for i, row in enumerate(forget)}
        refused = mock.patch.object(examples, "refusals", lambda rows, seed: [f"other {i}" for i in range(len(rows))])
        encode = mock.patch.object(Encoder, "one", lambda self, row: known[row.input, row.output])
        mask = mock.patch.object(examples, "own_tokens", lambda tokens, words, tokenizer: own_mask(tokens.scored))
        with refused, encode, mask:
            super().__init__(model, method, args, forget, retain, processing_class=None, **options)
        self.remove_callback(self.monitor)

    def _persons(self, model: Any, *_: Any) -> Persons | None:
        """One invented person for each forget row."""
        if not self.method.needs.persons:
            return None
        rows = list(enumerate(self.forget))
        controls = {row.id: [row_of("control", index)] for index, row in rows}
        prompts = [
            () if made_up(answer) else control.input_ids[: control.labelled[0]]
            for answer, control in zip(ALTERNATIVE, CONTROL, strict=True)
        ]
        marks = [IGNORED if made_up(answer) else None for answer in ALTERNATIVE]
        said = {
            row.id: [Imitation(row_of("forget", index, "other"), prompts[index], marks[index])] for index, row in rows
        }
        return Persons(controls, said)

    def _contexts(self) -> dict[Tokens, list[Context]]:
        method: Any = self.method
        return {
            row: [aligned(row, other) for other in with_substitutes(row)[: method.contexts]]
            for row in self.examples.forget
        }


def build(folder: Path, method: str, tuning: str = "full", dtype: Any = torch.float64, **options: Any) -> Any:
    """A trainer, by default of three optimiser steps, each over all rows, the linear rate falling from `RATE`.

    Hyperparameters of the method (``params``) are those of its formula unless given. Its reference has been run.
    """
    formula = FORMULAS[method]
    plain: dict[str, Any] = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": RATE}
    plain |= {"lr_scheduler_type": "linear", "warmup_steps": 0.0, "max_grad_norm": 1.0, "max_tokens": 8192}
    plain |= {"forget_weight": FORGET_WEIGHT, "retain_weight": RETAIN_WEIGHT, "kl_weight": KL_WEIGHT, "seed": SEED}
    plain |= {"bf16": False, "disable_tqdm": True} | formula.options
    rows = {**ROWS, **options.pop("rows", {})}
    chosen = method_of(method, **options.pop("params", formula.params))
    rank = options.pop("lora_rank", 4)
    model = copy.deepcopy(known_model())
    torch.manual_seed(0)  # of the adapter's initial weights
    model = load.trainable(model, tuning, load.lora_config(rank, 32, 0.0)).to(dtype)
    given = {name: options.pop(name) for name in ("unseen", "callbacks") if name in options}
    args = UnlearningArguments(output_dir=str(folder), **(plain | options))
    trainer = TokenTrainer(model, chosen, args, rows, **given)
    trainer.run_reference()
    return trainer


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
        return [[(every, every if trainer.terms.retain_parts else [])] * int(trainer.args.num_train_epochs or 0)]
    return [
        [([f for key in keys for f in key.forget], [r for key in keys for r in key.retain]) for keys in phase]
        for phase in trainer.phases
    ]


def trained_by_hand(trainer: UnlearningTrainer, retain: Term | None) -> tuple[list[dict[str, float]], Any]:
    """What `trainer` is about to do, by hand: the log entries, and the model afterwards."""
    formula, params = FORMULAS[trainer.method.name], asdict(trainer.method)
    model, before = copy.deepcopy(trainer.model), copy.deepcopy(trainer.model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found: list[dict[str, float]] = []
    for phase in steps_of(trainer):
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        for number, (forget, kept) in enumerate(phase):
            sides = ([FORGET[i] for i in forget], [ALTERNATIVE[i] for i in forget], [RETAIN[i] for i in kept])
            step = Step(model, before, *sides, params, [CONTROL[i] for i in forget], [QUANTILES[i] for i in forget])
            losses = [entry["retain_loss"] for entry in found if "retain_loss" in entry]
            terms = {"forget": formula.forget(step)} | ({"retain": retain(step)} if retain else {})
            loss = FORGET_WEIGHT * terms["forget"]
            if retain:
                loss = loss + formula.weight(RETAIN_WEIGHT, losses, params) * terms["retain"]
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            rate = optimizer.param_groups[0]["lr"] = RATE * (1 - number / len(phase))
            optimizer.step()
            entry = {f"{name}_loss": term.item() for name, term in terms.items()}
            found.append(entry | {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate})
    assert trainer.args.max_grad_norm == 1.0
    if trainer.method.negated:
        with torch.no_grad():
            for weight, start in zip(model.parameters(), before.parameters(), strict=True):
                # an adapter starts at A and B = 0, and B alone is negated
                if not is_adapted(model) or not start.any():
                    weight.copy_(start - params["scale"] * (weight - start))
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
