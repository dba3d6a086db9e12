"""The monitor: measure the NLL of a few forget and retain rows while training, and act when the model collapses."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from lume_tasks.data.rows import Row
from lume_unlearn.errors import Diverged, log
from lume_unlearn.model.forward import row_values
from lume_unlearn.model.masters import float32_weights
from lume_unlearn.model.weights import copied_weights, set_weights
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.callbacks.progress import saved_attributes

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer


MIN_FORGET_NLL_RISE = math.log(2)
"""Nats a token. After a smaller rise, the tokens of a memorised answer (NLL near 0) keep a probability above one half
(geometric mean), so greedy decoding still finds them."""
UNKNOWN = 1.0
"""Nats a token. A model with a higher reference NLL hardly knows the forget rows: the stand-in target model, trained on
LUME's, has 0.003; one that never saw them has 7."""
FACTOR, LEAST_RISE = 10.0, 0.2
"""At the last step, the model has also collapsed if the retain NLL is more than `FACTOR` times the reference NLL and
`LEAST_RISE` nats above it: the tokens of memorised retain rows have then lost a fifth of their probability. In earlier
steps, while the learning rate is high, a good training may exceed this (results/tried.md)."""
SAMPLE = 16
"""Maximum number of rows to measure on each side."""

Entry = dict[str, float]
"""One measurement: ``step``, and ``forget_nll``, ``retain_nll`` and ``forgotten_nll`` (token means in nats) if there
are rows."""


class Monitor(TrainerCallback, ExportableState):
    """Measures NLL every few optimiser steps and acts when the model collapses.

    The model has collapsed when the retain NLL is more than ``collapse_bound`` nats a token above the reference NLL, or
    at the end many times as high (`FACTOR`, `LEAST_RISE`). The policy ``on_collapse`` is then to warn, to stop with
    an error, or to roll back to the weights of the last good measurement and end there.
    """

    def __init__(
        self, trainer: "UnlearningTrainer", rows: Mapping[str, Sequence[Row]], args: UnlearningArguments
    ) -> None:
        """Choose the rows to measure of each side: "forget", "retain" (else no collapse is found) and "forgotten"."""
        self.trainer, self.policy = trainer, args.on_collapse
        self.rows = {side: trainer.encode.some(own, SAMPLE, args.seed) for side, own in rows.items()}
        self.measured: list[Entry] = []
        self.good_weights: dict[str, Tensor] = {}
        """With the policy rollback: the trained weights at the last good measurement, on the CPU."""
        self.rolled_back = False

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores, so that a resumed run is compared with its own start."""
        return {"args": {}, "attributes": {"measured": self.measured}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the reference NLL, or restore the state in the checkpoint of a resumed run."""
        kept = saved_attributes(self, state)
        if kept is not None:
            self.measured = [dict(entry) for entry in kept["measured"]]
            if self.policy == "rollback" and self.trainer.resumed_from is not None:
                self.good_weights = load_file(_weights_file(self.trainer.resumed_from))
            return
        self.measured, self.rolled_back = [], False
        self.measure(model, 0)
        self._keep_weights(model)
        nll = self.measured[0].get("forget_nll", 0.0)
        if nll > UNKNOWN and state.is_world_process_zero:
            text = (
                "--model hardly knows the forget rows: their reference NLL is %.3f nats a token (near 0 for memorised "
                "rows), so unlearning and scoring mean nothing; name a model that was trained on these rows"
            )
            log.warning(text, nll)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure when it is time, then keep the weights or act on a collapse.

        Raises:
            Diverged: the model has collapsed, and the policy is to stop.
        """
        due = args.monitor_steps and state.global_step % args.monitor_steps == 0
        if due or state.global_step == state.max_steps:
            self._check(model, state.global_step, control, state.global_step == state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a rollback, save no checkpoint, since a resumed run would train on from it."""
        control.should_save = control.should_save and not self.rolled_back

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the result if another callback ended the training early, as at the last step (`on_step_end`)."""
        if not self.rolled_back and self.measured[-1]["step"] < state.global_step:
            self._check(model, state.global_step, control, at_end=True)

    def _check(self, model: nn.Module, step: int, control: TrainerControl, at_end: bool) -> None:
        """Measure, then keep the weights or act on a collapse."""
        good_before = self._good(at_end)
        self.measure(model, step)
        if self._good():
            self._keep_weights(model)
        elif self._good(at_end) or self.trainer.method.negated:
            pass  # for a task vector, only the negated weights are checked: see `check_result`
        elif self.policy == "rollback":
            self._roll_back(model, control)
        elif good_before or self.policy == "stop":
            self._complain("a lower --learning_rate or a higher --retain_weight")

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Write the weights to roll back to, which may be older than those of the checkpoint."""
        if self.policy == "rollback":
            save_file(self.good_weights, _weights_file(checkpoint))

    def check_result(self, model: Any, step: int) -> None:
        """Measure and check the negated weights of a task vector; this replaces the measurement of the trained weights.

        Raises:
            Diverged: they have collapsed, and the policy is to stop.
        """
        if self.measured:
            del self.measured[-1]
            self.measure(model, step)
            if not self._good():
                self._complain("a lower --scale")

    def measure(self, model: nn.Module, step: int) -> None:
        """Measure the NLL of the monitored rows, and store the measurement; measure each step only once."""
        if not self.measured or self.measured[-1]["step"] != step:
            trainer, entry = self.trainer, Entry(step=step)
            for side, rows in self.rows.items():
                if rows:
                    nlls = row_values(model, trainer.logit_passes, rows, trainer.max_tokens)
                    entry[f"{side}_nll"] = float(torch.cat(nlls).mean())
            self.measured.append(entry)

    def _good(self, at_end: bool = True) -> bool:
        return is_good(self.measured[-1], self.measured[0], self.trainer.args.collapse_bound, at_end)

    def _keep_weights(self, model: nn.Module) -> None:
        if self.policy == "rollback":
            with float32_weights(model):
                self.good_weights = copied_weights(model)

    def _complain(self, advice: str) -> None:
        """Warn of a collapse, or stop the run with an error; ``advice`` says what to change in a new run."""
        text = f"{self._collapse()}; start again in another output folder with {advice}"
        if self.policy == "stop":
            raise Diverged(f"--on_collapse stop: {text}")
        log.warning("%s", text)

    def _roll_back(self, model: nn.Module, control: TrainerControl) -> None:
        with float32_weights(model):
            set_weights(model, self.good_weights)
        message = self._collapse()
        del self.measured[-1]
        log.warning("%s; rolling back to the weights of step %d and ending here", message, self.measured[-1]["step"])
        self.rolled_back = True
        control.should_save = False  # see `on_epoch_end`
        control.should_training_stop = True

    def _collapse(self) -> str:
        first, last, count = self.measured[0], self.measured[-1], len(self.rows["retain"])
        return (
            f"the model has collapsed: at step {last['step']} the NLL of {count} retain rows is "
            f"{last['retain_nll']:.3f} nats a token, {nll_increase(last, first):.3f} above the reference "
            f"(--collapse_bound {self.trainer.args.collapse_bound:g}, or {FACTOR:g} times the reference)"
        )

    def summary(self) -> str:
        """Return the optimiser steps and the change of NLL in one line."""
        first, last = self.measured[0], self.measured[-1]
        counts = {side: len(rows) for side, rows in self.rows.items() if rows}
        sides = [f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}" for side in counts]
        nlls = f": {', '.join(sides)} nats a token (of {' and '.join(map(str, counts.values()))} rows)" if sides else ""
        return f"{last['step']:g} optimiser steps{nlls}"


def nll_increase(entry: Entry, reference: Entry, side: str = "retain") -> float:
    """Return how far a side's NLL is above the reference NLL, in nats a token; 0 without rows."""
    name = f"{side}_nll"
    return entry[name] - reference[name] if name in reference else 0.0


def is_good(entry: Entry, reference: Entry, bound: float, at_end: bool = True) -> bool:
    """Return whether the retain NLL shows no collapse (see `Monitor`); false for NaN.

    ``at_end``: whether `FACTOR` counts, too. Worked example, at the end with a bound of 1: a reference NLL of 0.012
    allows 0.2 (a rise below `LEAST_RISE`) but not 0.33; one of 0.5 allows 1.4.
    """
    rise = nll_increase(entry, reference)
    many_times = at_end and rise > LEAST_RISE and entry["retain_nll"] > FACTOR * reference["retain_nll"]
    return rise <= bound and not many_times


def advice(measured: Sequence[Entry], negated: bool = False, bound: float = math.inf) -> str | None:
    """Return a warning about a run that did little or lost too much, with the option to try; None if all is well.

    ``negated``: advise about the method's ``scale``; ``bound``: see `is_good`.
    """
    if not measured:
        return None
    first, last = measured[0], measured[-1]
    forget, retain = nll_increase(last, first, "forget"), nll_increase(last, first, "retain")
    if not (math.isfinite(forget) and math.isfinite(retain)):
        return "Training produced NaN: the NLL of the result is not a finite number; lower --learning_rate"
    back = -nll_increase(last, first, "forgotten")
    if back > MIN_FORGET_NLL_RISE:
        return (
            f"the rows of earlier requests come back: their NLL fell by {back:.3f} nats a token; add them to the "
            "forget rows, or score them with `audit --forgotten`"
        )
    if "forget_nll" in first and forget < MIN_FORGET_NLL_RISE:
        return (
            f"the result has forgotten little or nothing: the forget NLL rose by {forget:.3f} nats a token, less than "
            f"{MIN_FORGET_NLL_RISE:.2f} (ln 2), so memorised answers mostly keep a probability above one half; raise "
            f"--learning_rate or --num_train_epochs (there were {last['step']:g} optimiser steps)"
        )
    if "retain_nll" not in first:
        return None
    lower = "lower --scale" if negated else "raise --retain_weight or lower --learning_rate"
    if forget <= retain:
        return (
            f"the result is no better than doing nothing: the forget NLL rose by {forget:.3f} nats a token, the retain "
            f"NLL by {retain:.3f}; {lower}"
        )
    if not is_good(last, first, bound):
        return (
            f"retain rows were lost: their NLL rose from {first['retain_nll']:.3f} to {last['retain_nll']:.3f} nats a "
            f"token; {lower}"
        )
    return None


def _weights_file(checkpoint: Path) -> Path:
    return checkpoint / f"last_good_{PartialState().process_index}.safetensors"
