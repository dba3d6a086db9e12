"""Optimiser steps timed side by side: the usual way's and ours, of the same rows, on one model with one optimiser."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from peft import PeftModel

from lume_unlearn import modeling
from lume_unlearn.config import RunConfig
from lume_unlearn.data import Sides
from lume_unlearn.forward import token_nlls
from lume_unlearn.packing import IMPLEMENTATION
from lume_unlearn.schedule import Step
from lume_unlearn.unlearning import make_trainer
from lume_unlearn.usual import Usual

WARM_UP = 1
"""Steps that are taken but not counted."""
WAYS = ("usual", "ours")


@dataclass
class Measured:
    """What one way's steps took."""

    seconds: list[float] = field(default_factory=list)
    """Of each step."""
    bytes: list[int] = field(default_factory=list)
    """Most GPU memory in each step, without what only the other way needs."""


class Contest:
    """One method with one tuning, set up for both ways."""

    def __init__(
        self, run: RunConfig, tokenizer: Any, sides: Sides, micro_batch_size: int, ways: Sequence[str] = WAYS
    ) -> None:
        """Load the model, and what each way needs of it before unlearning.

        Args:
            run: the run whose steps are timed.
            tokenizer: of the model.
            sides: its rows.
            micro_batch_size: rows a side in one pass of the usual way.
            ways: those to be timed.
        """
        model = modeling.load_for_training(run)
        self.config, self.ways = run, [way for way in WAYS if way in ways]
        self.base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.trainer = make_trainer(run, model, tokenizer, sides)
        self.trainer.create_optimizer()
        self.matrix_weights = matrix_weights(self.base)
        accelerator = self.trainer.accelerator
        self.model, self.optimizer = accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.copy = self._copy() if run.method != "gd" and "usual" in ways else None
        self.usual_way = Usual(
            run.method, self.model, self.copy, micro_batch_size, accelerator.backward, accelerator.autocast
        )

    def _copy(self) -> Any:
        """The usual way's model before unlearning: without adapter, in the data type of the frozen weights."""
        dtype = self.base.get_input_embeddings().weight.dtype
        copy = modeling.load_model(self.config.model, dtype)
        return copy.eval().requires_grad_(False).to(self.trainer.args.device)

    def steps(self) -> list[Step]:
        """The steps of one epoch."""
        sampler: Any = self.trainer.get_train_dataloader().batch_sampler
        return [step for [step] in sampler]

    def take(self, way: str, step: Step) -> None:
        """One optimiser step, from rows to new weights."""
        if way == "ours":
            self.trainer.training_step(self.model, self.trainer.sides[step])
        else:
            rows = self.trainer.sides.rows(step.keys)
            self.usual_way.step(rows["forget"], rows["retain"])
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def prepare(self, way: str) -> None:
        """Give the model the attention of this way; each keeps its own where the model does not pack."""
        if self.trainer.passes.packs:
            self.base.set_attn_implementation(IMPLEMENTATION if way == "ours" else "sdpa")
        torch.compiler.set_stance("force_eager" if way == "usual" else "default")

    def reference_seconds(self, step: Step) -> float:
        """What our way spends once, before the first step, on the reference NLLs of a step's rows; 0 without any."""
        sides, device = self.trainer.sides, self.trainer.args.device
        rows = [row for side in self.trainer.method.reference for row in sides.rows(step.keys)[side]]
        if not rows:
            return 0.0
        with self.trainer.accelerator.autocast():
            return seconds_of(
                lambda: token_nlls(self.model, self.trainer.passes, rows, self.config.max_tokens, device), device
            )

    def others_bytes(self, way: str) -> int:
        """Memory of what only the other way needs."""
        ours = self.trainer.reference.copy if self.trainer.reference else None
        model = self.copy if way == "ours" else ours
        return 0 if model is None else sum(weight.numel() * weight.element_size() for weight in model.parameters())


def measure(contest: Contest, epochs: float, note: Callable[[str], None]) -> dict[str, Any]:
    """Time every step each way, the usual way first, after `WARM_UP` steps that do not count.

    What our way computes once for a whole run counts for one part in ``epochs`` of each step's.

    Returns:
        ``tokens`` (real ones of each step), ``ratio`` (ours to usual, median over the steps, of both), and for each way
        ``seconds``, ``tokens_per_second`` (median) and ``peak_bytes`` (None on a CPU).
    """
    device = contest.trainer.args.device
    measured = {way: Measured() for way in contest.ways}
    tokens = []
    for number, step in enumerate(contest.steps()):
        taken = {way: _step(contest, way, step, device) for way in contest.ways}
        once = contest.reference_seconds(step) / epochs
        name = "warm-up" if number < WARM_UP else f"step {number - WARM_UP + 1}"
        note(f"{name}: " + ", ".join(f"{way} {seconds:.2f} s" for way, (seconds, _) in taken.items()))
        if number < WARM_UP:
            continue
        tokens.append(sum(length for key in step.keys for length in contest.trainer.sides.lengths(key)))
        for way, (seconds, peak) in taken.items():
            measured[way].seconds.append(seconds + (once if way == "ours" else 0.0))
            measured[way].bytes.append(peak)
    found: dict[str, Any] = {"tokens": tokens} | {way: _summary(part, tokens) for way, part in measured.items()}
    if len(measured) == len(WAYS):
        pairs = zip(*(measured[way].seconds for way in WAYS), strict=True)
        found["ratio"] = median(usual / ours for usual, ours in pairs)
    return found


def _step(contest: Contest, way: str, step: Step, device: torch.device) -> tuple[float, int]:
    """Seconds and peak memory of one step."""
    contest.prepare(way)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(lambda: contest.take(way, step), device)
    contest.prepare("ours")
    peak = torch.cuda.max_memory_allocated() - contest.others_bytes(way) if device.type == "cuda" else 0
    return seconds, peak


def _summary(measured: Measured, tokens: Sequence[int]) -> dict[str, Any]:
    rates = [count / seconds for count, seconds in zip(tokens, measured.seconds, strict=True)]
    return {
        "seconds": measured.seconds,
        "tokens_per_second": median(rates),
        "peak_bytes": max(measured.bytes) or None,
    }


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of a call, until the device is done."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_weights(model: Any) -> int:
    """Weights that a token is multiplied by: all matrices but those only looked up, adapters aside."""
    matrices = {
        id(weight): weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and "lora_" not in name
    }
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or output.weight is not embedding.weight:
        matrices.pop(id(embedding.weight), None)
    return sum(matrices.values())


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest product of two square matrices, over several sizes and repeats."""
    sizes, repeats = ((4096, 8192, 16384), 10) if device.type == "cuda" else ((1024, 2048), 4)
    best = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(repeats):
            best = max(best, 2 * size**3 / seconds_of(lambda: left @ right, device))  # noqa: B023
    return best


def free_memory() -> None:
    """Give back what objects that are gone held on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
