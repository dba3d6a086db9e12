"""Watching a run: does it still know its retain rows, and did it do what it was for?"""

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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lume_unlearn.config import ConfigError
from lume_unlearn.data.encode import Tokens
from lume_unlearn.model.forward import Passes, evaluating, row_nlls
from lume_unlearn.training.checkpoints import PREFIX, InCheckpoint, whole_checkpoints

_log = logging.getLogger("lume_unlearn")

LITTLE = math.log(2)
"""Nats a token; a smaller rise of the NLL of forget rows is little: of a memorised answer (NLL near 0), the tokens then
keep a probability above one half (in the geometric mean), so that greedy decoding still finds them."""
UNKNOWN = 1.0
"""Nats a token; with a higher NLL before unlearning, the model hardly knows the forget rows: the stand-in target that
was trained on LUME's has 0.003, the one that never saw them 7."""
SAMPLE = 16
"""Rows of each side that are watched."""


class Watch(TrainerCallback, ExportableState, InCheckpoint):
    """Measures the NLL of a few forget and retain rows every few steps.

    A run has collapsed where the mean over the retain tokens has risen by more than a bound, in nats, since the start.
    Then the run warns; or stops with an error; or goes back to the weights of the last measurement before, and ends
    with those. The measurements are in unlearning.json. Where the result is made of the trained weights at the end,
    only that can collapse (see `judge`).
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
        at_end: bool = False,
    ) -> None:
        """Set up.

        Args:
            passes: how the model is passed for logits.
            forget: forget rows to watch.
            retain: retain rows to watch; without any there is nothing that could collapse.
            every: optimiser steps between two measurements; 0 for only before and after.
            bound: nats a token.
            policy: what to do: warn, stop or rollback.
            max_tokens: of one pass.
            at_end: whether the weights in training are not those that are wanted (task vectors).
        """
        self.at_end = at_end
        self.passes, self.forget, self.retain = passes, list(forget), list(retain)
        self.every, self.bound, self.policy, self.max_tokens = every, bound, policy, max_tokens
        self.measured: list[dict[str, float]] = []
        self.collapsed = False
        self.best: list[Tensor] = []

    def state(self) -> dict[str, Any]:
        """For the checkpoint: a resumed run is compared with its own start."""
        held = {"measured": self.measured, "collapsed": self.collapsed, "policy": self.policy, "bound": self.bound}
        return {"args": {}, "attributes": held}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure before the first step, or go on with what the checkpoint held."""
        saved = cast(dict[str, Any], state.stateful_callbacks or {}).get(type(self).__name__)
        if saved is not None and state.global_step:
            held = saved["attributes"]
            self.measured = [dict(entry) for entry in held["measured"]]
            if (held.get("policy"), held.get("bound")) == (self.policy, self.bound):
                self.collapsed = held["collapsed"]
                self._load_best(Path(args.output_dir or "") / f"{PREFIX}{state.global_step}")
            elif not self.at_end:
                self._begin_anew(model, state.global_step, Path(args.output_dir or ""))
        else:
            self._measure(model, 0)
            self._keep(model)
            if state.is_world_process_zero and (unknown := self.unknown()):
                _log.warning("%s", unknown)

    def _begin_anew(self, model: nn.Module, step: int, output: Path) -> None:
        """Judge the weights that are resumed by a policy or a bound that they were not trained under.

        Raises:
            ConfigError: they have collapsed already, and the policy is not to warn.
        """
        if self.measured[-1]["step"] != step:
            self._measure(model, step)
        if (rise := self.rise("retain")) <= self.bound:
            self._keep(model)
            return
        self.collapsed = True
        if self.policy == "warn":
            _log.warning("%s", self._found(step, rise))
        else:
            raise ConfigError(f"--on_collapse {self.policy}: {self._found(step, rise)}; {self._advice(output)}")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure, and act on a collapse."""
        last = state.global_step == state.max_steps
        if not last and not (self.every and state.global_step % self.every == 0):
            return
        self._measure(model, state.global_step)
        rise = self.rise("retain")
        if rise <= self.bound:  # never true of NaN
            self._keep(model)
        elif not self.collapsed and not self.at_end:
            self.collapsed = True
            self._act(model, state.global_step, rise, control, Path(args.output_dir or ""))

    def judge(self, model: nn.Module, step: int) -> None:
        """Measure what was made of the trained weights, instead of those.

        Raises:
            ConfigError: it has collapsed, and the policy is to stop.
        """
        if self.measured[-1]["step"] == step:
            del self.measured[-1]
        self._measure(model, step)
        if (rise := self.rise("retain")) <= self.bound:
            return
        if self.policy == "stop":
            raise ConfigError(
                f"--on_collapse stop: {self._found(step, rise)}; lower --scale (with --resume: all checkpoints stay)"
            )
        _log.warning("%s", self._found(step, rise))

    def rise(self, side: str) -> float:
        """Nats a token by which a side's NLL has risen since the start; 0 without rows."""
        first, last = self.measured[0], self.measured[-1]
        return last[f"{side}_nll"] - first[f"{side}_nll"] if f"{side}_nll" in first else 0.0

    def unknown(self) -> str | None:
        """What to say of a model that hardly knows the forget rows before it unlearns them."""
        start = self.measured[0].get("forget_nll", 0.0)
        if start <= UNKNOWN:
            return None
        return (
            f"--model hardly knows the forget rows: their NLL is {start:.3f} nats a token before unlearning (near "
            "0 where a model has memorised them), so unlearning and scoring mean nothing; name the model that was "
            "trained on these rows"
        )

    def summary(self) -> str:
        """What the run did to the measured rows, and in how many optimiser steps."""
        first, last = self.measured[0], self.measured[-1]
        sides = [
            f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}"
            for side in ("forget", "retain")
            if f"{side}_nll" in first
        ]
        rows = " and ".join(str(len(rows)) for rows in (self.forget, self.retain) if rows)
        return f"{last['step']:g} optimiser steps: {', '.join(sides)} nats a token (of {rows} rows)"

    def verdict(self) -> str | None:
        """What to say at the end of a run that did more harm than good."""
        forget, retain = self.rise("forget"), self.rise("retain")
        if not all(map(math.isfinite, (forget, retain))):
            return "the result is worse than doing nothing: its NLL is not a finite number; lower --learning_rate"
        if self.forget and forget < LITTLE:
            return (
                "the result has forgotten little or nothing: over the run the NLL of watched forget rows rose by "
                f"{forget:.3f} nats a token, less than {LITTLE:.2f} (ln 2), so what was memorised mostly keeps a "
                "probability above one half and can still be answered; raise --learning_rate or --epochs (it took "
                f"{self.measured[-1]['step']:g} optimiser steps; a smaller --batch_size makes more)"
            )
        if not self.retain or forget > retain:
            return None
        return (
            "the result is no better than doing nothing: over the run the NLL of watched forget rows rose by "
            f"{forget:.3f} nats a token, that of watched retain rows by {retain:.3f}; "
            + ("lower --scale" if self.at_end else "raise --retain_weight or lower --learning_rate")
        )

    def _found(self, step: int, rise: float) -> str:
        return (
            f"the model has collapsed: at step {step} the NLL of watched retain rows is {rise:.3f} nats a token above "
            f"the start (--collapse_bound {self.bound:g})"
        )

    def _advice(self, output: Path) -> str:
        """How to go on from before the collapse: `--resume` takes the newest checkpoint, which may be from after it."""
        start = self.measured[0].get("retain_nll", 0.0)
        good = max(entry["step"] for entry in self.measured if entry.get("retain_nll", 0.0) - start <= self.bound)
        names = [path.name for path in whole_checkpoints(output)]
        later = [name for name in names if int(name[len(PREFIX) :]) > good]
        if later == names:
            return (
                "no checkpoint is from before that: begin anew with a lower --learning_rate or a higher --retain_weight"
            )
        how = f"--resume with a lower --learning_rate goes on from {names[len(later)]}, which is from before that"
        return f"remove {', '.join(later)}; then {how}" if later else how

    def _act(self, model: nn.Module, step: int, rise: float, control: TrainerControl, output: Path) -> None:
        """Follow the policy.

        Raises:
            ConfigError: the policy is to stop.
        """
        found = self._found(step, rise)
        if self.policy == "stop":
            raise ConfigError(f"--on_collapse stop: {found}; {self._advice(output)}")
        if self.policy == "warn":
            _log.warning("%s", found)
            return
        with torch.no_grad():
            for weight, value in zip(trained_weights(model), self.best, strict=True):
                weight.copy_(value)
        del self.measured[-1]
        control.should_save = False  # a checkpoint of this step would go on from here
        _log.warning("%s; going back to the weights of step %d and ending here", found, self.measured[-1]["step"])
        control.should_training_stop = True

    def _keep(self, model: nn.Module) -> None:
        if self.policy == "rollback":
            self.best = [weight.to("cpu", copy=True) for weight in trained_weights(model)]

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Keep the weights to go back to: they are older than the checkpoint's own."""
        if self.policy == "rollback":
            tensors = {str(number): value for number, value in enumerate(self.best)}
            save_file(tensors, checkpoint / _best_file())

    def _load_best(self, checkpoint: Path) -> None:
        if self.policy == "rollback":
            tensors = load_file(checkpoint / _best_file())
            self.best = [tensors[str(number)] for number in range(len(tensors))]

    def _measure(self, model: nn.Module, step: int) -> None:
        entry: dict[str, float] = {"step": step}
        device = next(model.parameters()).device
        with evaluating(model):
            for side, rows in (("forget", self.forget), ("retain", self.retain)):
                if rows:
                    nlls = row_nlls(model, self.passes, rows, self.max_tokens, device)
                    entry[f"{side}_nll"] = float(torch.cat(nlls).mean())
        self.measured.append(entry)


def trained_weights(model: nn.Module) -> list[Tensor]:
    """The trained weights, or this process's part of them."""
    trained = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained]


def _best_file() -> str:
    return f"best_{PartialState().process_index}.safetensors"
