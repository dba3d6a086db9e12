"""What a run measures of itself: NLL of a few forget and retain rows (the collapse monitor), and its speed."""

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from lume_unlearn.config import RunConfig
from lume_unlearn.data.encode import Tokens
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import PREFIX
from lume_unlearn.model.forward import Passes, evaluating, row_values
from lume_unlearn.model.masters import float32_weights

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
"""One measurement: ``step``, and ``forget_nll``, ``retain_nll`` and ``forgotten_nll`` (token means in nats) where there
are rows."""


class Monitor(TrainerCallback, ExportableState):
    """Measures NLL every few optimiser steps and acts when the model collapses.

    The model has collapsed when the retain NLL is more than ``collapse_bound`` nats a token above the reference NLL.
    The policy is then to warn, to stop with an error, or to roll back to the weights of the last good measurement
    and end there.
    """

    def __init__(self, config: RunConfig, passes: Passes, rows: Mapping[str, Sequence[Tokens]]) -> None:
        """Take passes for logits, and rows to measure: "forget", "retain" (else no collapse is found), "forgotten"."""
        self.config, self.passes = config, passes
        self.rows = dict(rows)
        self.policy = config.on_collapse
        self.measured: list[Entry] = []
        self.good_weights: list[Tensor] = []
        """With the policy rollback: the trained weights at the last good measurement, on the CPU."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a resumed run is compared with its own start."""
        return {"args": {}, "attributes": {"measured": self.measured}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure the reference NLL, or restore what the checkpoint kept."""
        saved = cast(dict[str, Any], state.stateful_callbacks or {}).get(type(self).__name__)
        if saved is not None and state.global_step:
            self.measured = [dict(entry) for entry in saved["attributes"]["measured"]]
            if self.policy == "rollback":
                tensors = load_file(_weights_file(Path(args.output_dir) / f"{PREFIX}{state.global_step}"))
                self.good_weights = [tensors[str(number)] for number in range(len(tensors))]
            return
        self.measure(model, 0)
        self._keep_weights(model)
        warning = unknown_rows(self.measured[0])
        if warning and state.is_world_process_zero:
            _log.warning("%s", warning)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure when it is time, then keep the weights or act on a collapse.

        Raises:
            ConfigError: the model has collapsed, and the policy is to stop.
        """
        every = self.config.watch_steps
        due = every and state.global_step % every == 0
        if not due and state.global_step != state.max_steps:
            return
        good_before = self._good()
        self.measure(model, state.global_step)
        if self._good():
            self._keep_weights(model)
        elif self.config.spec.negated:
            pass  # only the negated weights can collapse: see `check_result`
        elif self.policy == "rollback":
            self._roll_back(model, control)
        elif good_before or self.policy == "stop":
            self._complain("start again in another --output with a lower --learning_rate")

    def write_into(self, checkpoint: Path, state: TrainerState) -> None:
        """Keep the weights to roll back to: they are older than the checkpoint's."""
        if self.policy == "rollback":
            tensors = {str(number): weight for number, weight in enumerate(self.good_weights)}
            save_file(tensors, _weights_file(checkpoint))

    def check_result(self, model: Any, step: int) -> None:
        """Measure the final weights of a task vector, in place of those that were trained, and check them.

        Raises:
            ConfigError: they have collapsed, and the policy is to stop.
        """
        del self.measured[-1]
        self.measure(model, step)
        if not self._good():
            self._complain("start again in another --output with a lower --scale")

    def measure(self, model: nn.Module, step: int) -> Entry:
        """Measure the NLL of the monitored rows, keep the measurement and return it; once for each step."""
        if self.measured and self.measured[-1]["step"] == step:
            return self.measured[-1]
        entry: Entry = {"step": step}
        device = next(model.parameters()).device
        with evaluating(model):
            for side, rows in self.rows.items():
                if rows:
                    nlls = row_values(model, self.passes, rows, self.config.max_tokens, device)
                    entry[f"{side}_nll"] = float(torch.cat(nlls).mean())
        self.measured.append(entry)
        return entry

    def _good(self) -> bool:
        return rise(self.measured[-1], self.measured[0]) <= self.config.collapse_bound  # false for NaN

    def _keep_weights(self, model: nn.Module) -> None:
        if self.policy == "rollback":
            with float32_weights(model):
                self.good_weights = [weight.to("cpu", copy=True) for weight in trained_weights(model)]

    def _complain(self, advice: str) -> None:
        """Warn of a collapse, or stop the run with an error that ends in ``advice``."""
        if self.policy == "warn":
            _log.warning("%s", self._collapse())
        else:
            raise ConfigError(f"--on_collapse {self.policy}: {self._collapse()}; {advice}")

    def _roll_back(self, model: nn.Module, control: TrainerControl) -> None:
        with torch.no_grad(), float32_weights(model):
            for weight, good in zip(trained_weights(model), self.good_weights, strict=True):
                weight.copy_(good)
        message = self._collapse()
        del self.measured[-1]
        _log.warning("%s; rolling back to the weights of step %d and ending here", message, self.measured[-1]["step"])
        control.should_save = False  # a resumed run would train on from a checkpoint of this step
        control.should_training_stop = True

    def _collapse(self) -> str:
        last, count = self.measured[-1], len(self.rows["retain"])
        return (
            f"the model has collapsed: at step {last['step']} the NLL of {count} retain rows is "
            f"{rise(last, self.measured[0]):.3f} nats a token above the reference "
            f"(--collapse_bound {self.config.collapse_bound:g})"
        )

    def summary(self) -> str:
        """Return the optimiser steps and the change of NLL in one line."""
        first, last = self.measured[0], self.measured[-1]
        counts = {side: len(rows) for side, rows in self.rows.items() if rows}
        sides = [f"{side} NLL {first[f'{side}_nll']:.3f} -> {last[f'{side}_nll']:.3f}" for side in counts]
        nlls = f": {', '.join(sides)} nats a token (of {' and '.join(map(str, counts.values()))} rows)" if sides else ""
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
    """Return a warning about a run that did little, or more harm than good; ``negated``: it made a task vector."""
    first, last = measured[0], measured[-1]
    forget, retain = rise(last, first, "forget"), rise(last, first, "retain")
    if not (math.isfinite(forget) and math.isfinite(retain)):
        return "the result is worse than doing nothing: its NLL is not a finite number; lower --learning_rate"
    back = -rise(last, first, "forgotten")
    if back > LITTLE:
        return (
            f"the rows of earlier requests come back: their NLL fell by {back:.3f} nats a token; add them to the "
            "forget rows, or score them with `audit --forgotten`"
        )
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


class Throughput(TrainerCallback):
    """Times the optimiser steps, without monitor, checkpoints and scoring; to be called before other callbacks."""

    def __init__(self) -> None:
        """Start at 0: a resumed run counts its own steps only."""
        self.seconds = self.started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self.started

    def summary(self, tokens: int) -> str:
        """Return tokens a second and peak memory; every process calls it with its ``tokens``, without padding."""
        total = reduce(torch.tensor(tokens, device=PartialState().device), "sum").item()
        where = "GPU memory" if torch.cuda.is_available() else "memory"
        rate = total / max(self.seconds, 1e-9)
        return f"{rate:,.0f} tokens a second without padding, peak {where} {_peak_memory() / 2**30:.2f} GiB"


def _peak_memory() -> int:
    """Return the most bytes that this process has held: on the GPU if there is one, else in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    on_windows: int | None = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if on_windows is not None:
        return on_windows
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
