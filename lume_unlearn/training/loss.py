"""The loss terms of one micro-batch, computed in one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lume_unlearn.data.packs import Pack
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Batch, Method, Rows, Side, TokenCounts
from lume_unlearn.methods.common import token_nll
from lume_unlearn.methods.counterfactual import blended
from lume_unlearn.methods.retain import part_needs_reference, retain_value
from lume_unlearn.methods.swap import without_truth
from lume_unlearn.model.forward import Passes, Span
from lume_unlearn.model.reference import Reference
from lume_unlearn.model.teacher import Teacher


@dataclass
class LossTerms:
    """Computes the forget loss and the retain term of micro-batches."""

    method: Method
    passes: Passes
    retain_parts: Mapping[str, float]
    """Parts of the retain term and their weights (`methods.retain.retain_parts`); empty without a retain term."""
    reference: Reference | None = None
    """The reference model, if it runs in every step."""
    teacher: Teacher | None = None

    def __call__(
        self,
        model: nn.Module,
        batch: Pack,
        counts: TokenCounts,
        state: Mapping[str, float],
        sides: Sequence[Side] = ("forget", "retain"),
    ) -> dict[str, Tensor]:
        """Return this micro-batch's share of each loss term of the step, "forget" and "retain", before weighting.

        Args:
            model: the model in training, as accelerate wrapped it.
            batch: the micro-batch, on the device of this process.
            counts: labelled tokens of the whole optimiser step.
            state: the method's own state (see `Method.adapt`).
            sides: the terms to compute.
        """
        if len(sides) == 1:
            batch = batch.only("forget", "control", "alternative") if "forget" in sides else batch.only("retain")
        spans = self._spans(model, batch, sides)
        values = dict(zip(spans, self.passes.values(model, batch, list(spans.values())), strict=True))
        terms: dict[str, Tensor] = {}
        if "forget" in sides:
            forget = self._rows(batch, "forget", values["forget"])
            forget = replace(forget, nll=values.get("forget_nll") if self.method.token_loss else values["forget"])
            alternative = self._rows(batch, "alternative", values.get("alternative"))
            control = self._rows(batch, "control", values.get("control"))
            given = Batch(forget, alternative, counts, state, control, batch.quantiles, batch.texts)
            loss = terms["forget"] = self.method.forget_loss(given)
            if loss.ndim:
                name, shape = self.method.name, tuple(loss.shape)
                raise ConfigError(f"{name}: forget_loss must return one number, not {shape}; sum it")
        if "retain" in sides and self.retain_parts:
            rows = {part: self._rows(batch, "retain", values[part]) for part in self.retain_parts}
            parts = [weight * self.method.retain_loss(rows[part], counts) for part, weight in self.retain_parts.items()]
            terms["retain"] = torch.stack(parts).sum()
        return terms

    def _spans(self, model: nn.Module, batch: Pack, sides: Sequence[Side]) -> dict[str, Span]:
        """Return the tokens and the value to compute for each, by side; for retain rows by part of the retain term."""
        method, spans = self.method, dict[str, Span]()
        if "forget" in sides:
            tokens = batch.tokens_of("forget")
            spans["forget"] = Span(tokens, method.token_loss or token_nll, self._compared(model, batch))
            if method.token_loss and method.needs.nll:
                spans["forget_nll"] = Span(tokens)
            if method.needs.persons:
                spans["control"] = Span(batch.tokens_of("control"))
            if method.needs.alternatives or method.needs.persons:
                spans["alternative"] = self._alternative(batch)
        if "retain" in sides:
            tokens, reference = batch.tokens_of("retain"), None
            if self.reference is not None and any(map(part_needs_reference, self.retain_parts)):
                reference = self.reference.at(model, batch.only("retain"))
            for part in self.retain_parts:
                compared = reference if part_needs_reference(part) else None
                spans[part] = Span(tokens, partial(retain_value, part), compared)
        return spans

    def _alternative(self, batch: Pack) -> Span:
        """Return what to compute for the alternatives: NLL, or ``imitation_loss`` if the teacher has predictions."""
        tokens, teacher = batch.tokens_of("alternative"), self.teacher
        if teacher is None or not self.method.imitation_loss:
            return Span(tokens)
        return Span(tokens, self.method.imitation_loss, teacher.at(batch.teacher, batch.targets[tokens], without_truth))

    def _compared(self, model: nn.Module, batch: Pack) -> Callable[[slice], Any] | None:
        """Return what ``token_loss`` compares forget tokens with: reference logits or the teacher's prediction."""
        method = self.method
        if self.teacher is not None and method.token_loss:
            tokens = batch.tokens_of("forget")
            targets = batch.targets[tokens]
            said = self.teacher.at(batch.teacher, targets)
            if not method.needs.blend:
                return said
            right = -batch.reference[tokens]
            return lambda part: blended(said(part), targets[part], right[part])
        if self.reference is None or not method.needs.reference_logits:
            return None
        logits = self.reference.at(model, batch.only("forget"))
        if not method.select:
            return logits
        rows = self._rows(batch, "forget", None)
        selected = method.select(rows.reference, rows.rows)
        return lambda part: (logits(part), selected[part])

    def _rows(self, batch: Pack, side: Side, values: Tensor | None) -> Rows:
        """Return one side's values, with the reference NLL if the method needs it."""
        tokens, rows, known = batch.tokens_of(side), batch.rows_of(side), batch.reference
        needs, reference = self.method.needs, known[:0]
        own_words = needs.persons and side in ("forget", "control")
        if side in needs.reference_nll or own_words or (needs.teacher and side == "forget"):
            # without a teacher, the level of every token is 0 before the shift
            reference = known[tokens] if len(known) else known.new_zeros(tokens.stop - tokens.start)
        values = known[:0] if values is None else values
        return Rows(values, batch.rows[tokens] - rows.start, rows.stop - rows.start, reference)
