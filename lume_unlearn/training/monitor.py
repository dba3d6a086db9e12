"""The collapse monitor: NLL of a few forget and retain rows while training, and what it says about the run."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import PREFIX
from lume_unlearn.model.forward import Passes, evaluating, row_nlls
from lume_unlearn.training.checkpoints import InCheckpoint, resume_advice

_log = logging.getLogger("lume_unlearn")

LITTLE = math.log(2)
"""Nats a token. After a smaller rise, the tokens of a memorised answer (NLL near 0) keep a probability above one half
(geometric mean), so greedy decoding still finds them."""
UNKNOWN = 1.0
"""Nats a token. A model with a higher reference NLL hardly knows the forget rows: the stand-in target model, which was
trained on LUME's, has 0.003; one that never saw them has 7."""
SAMPLE = 16
"""Rows of each side to measure."""

Entry = dict[str, float]
"""One measurement: ``step``, and ``forget_nll`` and ``retain_nll`` (token means in nats) where there are rows."""


class Monitor(TrainerCallback, ExportableState, InCheckpoint):
    """Measures NLL every few optimiser steps and acts when the model collapses.

    The model has collapsed when the retain NLL is more than ``bound`` nats a token above the reference NLL. The policy
    is then to warn, to stop with an error, or to roll back to the weights of the last good measurement and end there.
    """

    def __init__(
        self,
        passes: Passes,
        forget: Sequence[Tokens],
        retain: Sequence[Tokens],
        every: int,
        bound: float,
        policy: str,
        max_tokens: int,
        negated: bool = False,
    ) -> None:
        """Set up the monitor.

        Args:
            passes: forward passes of the model, for logits.
            forget: forget rows to measure.
            retain: retain rows to measure; without any, no collapse is found.
            every: optimiser steps between two measurements; 0 measures only at the start and at the end.
            bound: nats a token.
            policy: what to do after a collapse: warn, stop or rollback.
            max_tokens: most tokens in one forward pass.
            negated: whether the result is a task vector: then only `check_result` looks for a collapse.
        """
        self.passes, self.forget, self.retain = passes, list(forget), list(retain)
        self.every, self.bound, self.policy, self.max_tokens = every, bound, policy, max_tokens
        self.negated = negated
        self.measured: list[Entry] = []
        self.collapsed = False
        self.good_weights: list[Tensor] = []
        """With the policy rollback: the trained weights at the last good measurement, on the CPU."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a resumed run is compared with its own start."""
        kept = {"measured": self.measured, "collapsed": self.collapsed, "policy": self.policy, "bound": self.bound}
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the reference NLL, or restore what the checkpoint kept.

        Raises:
            ConfigError: the run is resumed with another policy or bound, and by that it has collapsed already.
        """
        saved = cast(dict[str, Any], state.stateful_callbacks or {}).get(type(self).__name__)
        if saved is None or not state.global_step:
            self._measure(model, 0)
            self._keep_weights(model)
            if state.is_world_process_zero and (warning := unknown_rows(self.measured[0])):
                _log.warning("%s", warning)
            return
        kept = saved["attributes"]
        self.measured = [dict(entry) for entry in kept["measured"]]
        if (kept["policy"], kept["bound"]) != (self.policy, self.bound):
            self._check(model, state.global_step, control, Path(args.output_dir or ""))
            return
        self.collapsed = kept["collapsed"]
        if self.policy == "rollback":
            tensors = load_file(_weights_file(Path(args.output_dir or "") / f"{PREFIX}{state.global_step}"))
            self.good_weights = [tensors[str(number)] for number in range(len(tensors))]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure when it is time, and act on a collapse."""
        due = self.every and state.global_step % self.every == 0
        if due or state.global_step == state.max_steps:
            self._check(model, state.global_step, control, Path(args.output_dir or ""))

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Keep the weights to roll back to: they are older than the checkpoint's."""
        if self.policy == "rollback":
            tensors = {str(number): weight for number, weight in enumerate(self.good_weights)}
            save_file(tensors, _weights_file(checkpoint))

    def check_result(self, model: nn.Module, step: int) -> None:
        """Measure the final weights of a task vector, in place of those that were trained, and check them.

        Raises:
            ConfigError: they have collapsed, and the policy is to stop.
        """
        self.measured = [entry for entry in self.measured if entry["step"] != step]
        self._measure(model, step)
        if not self._rise() <= self.bound:
            self._complain("lower --scale (with --resume: the checkpoints are kept)")

    def _measure(self, model: nn.Module, step: int) -> None:
        entry: Entry = {"step": step}
        device = next(model.parameters()).device
        with evaluating(model):
            for side, rows in (("forget", self.forget), ("retain", self.retain)):
                if rows:
                    nlls = row_nlls(model, self.passes, rows, self.max_tokens, device)
                    entry[f"{side}_nll"] = float(torch.cat(nlls).mean())
        self.measured.append(entry)

    def _check(self, model: nn.Module, step: int, control: TrainerControl, output: Path) -> None:
        """Measure, then keep the weights or act on a collapse.

        Raises:
            ConfigError: the model has collapsed, and the policy is to stop, or there are no weights to roll back to.
        """
        if self.measured[-1]["step"] != step:
            self._measure(model, step)
        if self._rise() <= self.bound:  # false for NaN
            self._keep_weights(model)
        elif not self.collapsed and not self.negated:
            self.collapsed = True
            if self.good_weights:
                self._roll_back(model, control)
            else:
                good = [entry["step"] for entry in self.measured if rise(entry, self.measured[0]) <= self.bound]
                self._complain(resume_advice(output, good[-1]))

    def _rise(self) -> float:
        return rise(self.measured[-1], self.measured[0])

    def _keep_weights(self, model: nn.Module) -> None:
        if self.policy == "rollback":
            self.good_weights = [weight.to("cpu", copy=True) for weight in trained_weights(model)]

    def _complain(self, advice: str) -> None:
        """Warn of a collapse, or stop the run with an error that ends in ``advice``."""
        if self.policy == "warn":
            _log.warning("%s", self._collapse())
        else:
            raise ConfigError(f"--on_collapse {self.policy}: {self._collapse()}; {advice}")

    def _roll_back(self, model: nn.Module, control: TrainerControl) -> None:
        with torch.no_grad():
            for weight, good in zip(trained_weights(model), self.good_weights, strict=True):
                weight.copy_(good)
        message = self._collapse()
        del self.measured[-1]
        _log.warning("%s; rolling back to the weights of step %d and ending here", message, self.measured[-1]["step"])
        control.should_save = False  # a resumed run would train on from a checkpoint of this step
        control.should_training_stop = True

    def _collapse(self) -> str:
        return (
            f"the model has collapsed: at step {self.measured[-1]['step']} the NLL of {len(self.retain)} retain rows "
            f"is {self._rise():.3f} nats a token above the reference (--collapse_bound {self.bound:g})"
        )

    def summary(self) -> str:
        """Return the optimiser steps and the change of NLL in one line."""
        first, last = self.measured[0], self.measured[-1]
        rows = {"forget": len(self.forget), "retain": len(self.retain)}
        sides = [f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}" for side in rows if rows[side]]
        counts = " and ".join(str(count) for count in rows.values() if count)
        nlls = f": {', '.join(sides)} nats a token (of {counts} rows)" if sides else ""
        return f"{last['step']:g} optimiser steps{nlls}"


def rise(entry: Entry, reference: Entry, side: str = "retain") -> float:
    """Return how far a side's NLL is above the reference NLL, in nats a token; 0 without rows."""
    name = f"{side}_nll"
    return entry[name] - reference[name] if name in reference else 0.0


def unknown_rows(reference: Entry) -> str | None:
    """Return a warning if the reference model hardly knows the forget rows."""
    nll = reference.get("forget_nll", 0.0)
    if nll <= UNKNOWN:
        return None
    return (
        f"--model hardly knows the forget rows: their reference NLL is {nll:.3f} nats a token (near 0 for memorised "
        "rows), so unlearning and scoring mean nothing; name a model that was trained on these rows"
    )


def verdict(measured: Sequence[Entry], negated: bool = False) -> str | None:
    """Return a warning about a run that did little, or more harm than good.

    Args:
        measured: the measurements of the run.
        negated: whether the result is a task vector.
    """
    first, last = measured[0], measured[-1]
    forget, retain = rise(last, first, "forget"), rise(last, first, "retain")
    if not (math.isfinite(forget) and math.isfinite(retain)):
        return "the result is worse than doing nothing: its NLL is not a finite number; lower --learning_rate"
    if "forget_nll" in first and forget < LITTLE:
        return (
            f"the result has forgotten little or nothing: the forget NLL rose by {forget:.3f} nats a token, less than "
            f"{LITTLE:.2f} (ln 2), so memorised answers mostly keep a probability above one half; raise "
            f"--learning_rate or --epochs, or lower --batch_size (there were {last['step']:g} optimiser steps)"
        )
    if "retain_nll" not in first or forget > retain:
        return None
    advice = "lower --scale" if negated else "raise --retain_weight or lower --learning_rate"
    return (
        f"the result is no better than doing nothing: the forget NLL rose by {forget:.3f} nats a token, the retain NLL "
        f"by {retain:.3f}; {advice}"
    )


def trained_weights(model: nn.Module) -> list[Tensor]:
    """Return the trained weights, or this process's shards of them."""
    trained = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained]


def _weights_file(checkpoint: Path) -> Path:
    return checkpoint / f"last_good_{PartialState().process_index}.safetensors"
