"""The loss terms of one micro-batch: what the method's losses need is computed in one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lume_unlearn.data.packs import Pack, empty_pack
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Batch, Method, Rows, Side, TokenCounts
from lume_unlearn.methods.retain import part_needs_reference, retain_value
from lume_unlearn.model.forward import Passes, Span
from lume_unlearn.model.output_layer import nll_value
from lume_unlearn.model.reference import Reference
from lume_unlearn.model.teacher import Teacher


@dataclass
class LossTerms:
    """Computes the forget loss and the retain term of micro-batches."""

    method: Method
    passes: Passes
    retain_parts: Mapping[str, float]
    """Parts of the retain term and their weights (`methods.retain.retain_parts`); empty without one."""
    bf16: bool = False
    """Whether forward passes of a copy of the reference model are in bfloat16."""
    reference: Reference | None = None
    """The reference model, if it runs in every step."""
    teacher: Teacher | None = None

    def __call__(
        self,
        model: nn.Module,
        unwrapped: Any,
        batch: Pack,
        counts: TokenCounts,
        state: Mapping[str, float],
        sides: Sequence[Side] = ("forget", "retain"),
    ) -> dict[str, Tensor]:
        """Return this micro-batch's shares of the step's terms, "forget" and "retain", not yet weighted.

        Args:
            model: in training, as accelerate wrapped it.
            unwrapped: the same without the wrapper.
            batch: on the device of this process.
            counts: labelled tokens of the whole optimiser step.
            state: the method's own state (see `Method.adapt`).
            sides: the terms to compute.
        """
        if len(sides) == 1:
            batch = batch.only("forget", "alternative") if "forget" in sides else batch.only("retain")
            batch = batch if batch.lengths else empty_pack().to(batch.input_ids.device)
        spans = self._spans(model, unwrapped, batch, sides)
        values = dict(zip(spans, self.passes.values(model, batch, list(spans.values())), strict=True))
        terms: dict[str, Tensor] = {}
        if "forget" in sides:
            terms["forget"] = self._forget(batch, values, counts, state)
        if "retain" in sides and self.retain_parts:
            parts = [
                weight * self.method.retain_loss(self._rows(batch, "retain", values[part]), counts)
                for part, weight in self.retain_parts.items()
            ]
            terms["retain"] = torch.stack(parts).sum()
        return terms

    def _forget(
        self, batch: Pack, values: Mapping[str, Tensor], counts: TokenCounts, state: Mapping[str, float]
    ) -> Tensor:
        forget = self._rows(batch, "forget", values["forget"])
        forget = replace(forget, nll=values.get("forget_nll") if self.method.token_loss else values["forget"])
        alternative = self._rows(batch, "alternative", values.get("alternative"))
        loss = self.method.forget_loss(Batch(forget, alternative, counts, state))
        if loss.ndim:
            raise ConfigError(
                f"{self.method.name}: forget_loss must return one number, not {tuple(loss.shape)}; sum it"
            )
        return loss

    def _spans(self, model: nn.Module, unwrapped: Any, batch: Pack, sides: Sequence[Side]) -> dict[str, Span]:
        """Return what to compute for which labelled tokens: by side, or for retain rows by part of the retain term."""
        method, spans = self.method, dict[str, Span]()
        if "forget" in sides:
            tokens = batch.tokens_of("forget")
            spans["forget"] = Span(tokens, method.token_loss or nll_value, self._compared(model, unwrapped, batch))
            if method.token_loss and method.needs.nll:
                spans["forget_nll"] = Span(tokens, nll_value)
            if method.needs.alternatives:
                spans["alternative"] = Span(batch.tokens_of("alternative"), nll_value)
        if "retain" in sides:
            tokens, reference = batch.tokens_of("retain"), None
            if any(map(part_needs_reference, self.retain_parts)):
                reference = self._reference(model, unwrapped, batch, "retain")
            for part in self.retain_parts:
                compared = part_needs_reference(part)
                spans[part] = (
                    Span(tokens, partial(retain_value, part), reference) if compared else Span(tokens, nll_value)
                )
        return spans

    def _compared(self, model: nn.Module, unwrapped: Any, batch: Pack) -> Callable[[slice], Any] | None:
        """Return what ``token_loss`` compares forget tokens with: reference logits or the teacher's prediction."""
        method = self.method
        if self.teacher is not None and method.token_loss:
            return self.teacher.at(batch.teacher, batch.targets[batch.tokens_of("forget")])
        if not method.needs.reference_logits:
            return None
        logits = self._reference(model, unwrapped, batch, "forget")
        if not method.select:
            return logits
        rows = self._rows(batch, "forget", None)
        selected = method.select(rows.reference, rows.rows)
        return lambda part: (logits(part), selected[part])

    def _reference(self, model: nn.Module, unwrapped: Any, batch: Pack, side: Side) -> Callable[[slice], Any]:
        """Run the reference model on one side; every process has to make the same forward passes."""
        assert self.reference is not None
        rows = batch.only(side)
        rows = rows if rows.lengths else empty_pack().to(batch.input_ids.device)
        autocast = torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16)
        return self.reference.at(model, unwrapped, rows, autocast)

    def _rows(self, batch: Pack, side: Side, values: Tensor | None) -> Rows:
        """Return one side's values, with the reference NLL if the method needs it."""
        tokens, rows = batch.tokens_of(side), batch.rows_of(side)
        reference = batch.reference[:0]
        if side in self.method.needs.reference_nll or (self.method.needs.teacher and side == "forget"):
            # without a teacher, the level of every token is 0 before the shift
            reference = (
                batch.reference[tokens] if len(batch.reference) else torch.zeros_like(batch.rows[tokens]).float()
            )
        return Rows(
            values=batch.reference[:0] if values is None else values,
            rows=batch.rows[tokens] - rows.start,
            count=rows.stop - rows.start,
            reference=reference,
        )
