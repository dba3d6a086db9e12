"""The counterfactual teacher: what the reference model predicts without knowing the forget rows, computed once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lume_unlearn.data.contexts import Context
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import Seen, pack_rows
from lume_unlearn.data.schedule import Limits, cut
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.common import at_least_float32
from lume_unlearn.methods.counterfactual import swapped
from lume_unlearn.model.forward import Passes, evaluating


class Teacher:
    """Turns hidden states of the reference model into its predictions (see `methods.counterfactual`)."""

    def __init__(self, passes: Passes) -> None:
        """Copy the output layer of the reference model, whose logits ``passes`` are for.

        Raises:
            ConfigError: the model computes more than its output layer from its hidden states.
        """
        if not passes.chunks:
            raise ConfigError("--method: needs a model whose logits are what its output layer computes; choose another")
        head: Any = getattr(passes.head, "base_layer", passes.head)  # without an adapter on the output layer
        self.head: nn.Module = copy.deepcopy(head).requires_grad_(False)

    @torch.no_grad()
    def log_probs(self, states: Tensor, others: Tensor, targets: Tensor) -> Tensor:
        """Compute the log of the mean of the probabilities in C contexts: (n, V).

        Args:
            states: (C, n, d).
            others: (C, n) token ids: see `contexts.Context`.
            targets: (n,) ids of the row's own tokens.
        """
        total = targets.new_full((), -torch.inf, dtype=torch.float32)
        for own_states, own_others in zip(states, others, strict=True):
            logp = at_least_float32(self.head(own_states)).log_softmax(dim=-1)
            total = torch.logaddexp(total, swapped(logp, targets, own_others))
        return total - torch.tensor(len(states)).log()

    def at(self, seen: Seen | None, targets: Tensor) -> Callable[[slice], Tensor]:
        """Return a function from a slice of the tokens to `log_probs`; ``targets`` (n,), none if ``seen`` is None."""
        if seen is None:
            weight: Any = self.head.weight
            return lambda part: weight.new_zeros(0, len(weight))
        return lambda part: self.log_probs(seen.states[:, part], seen.others[:, part], targets[part])

    def nll(self, row: Tokens, seen: Seen, device: torch.device, chunk: int = 256) -> Tensor:
        """Compute the teacher's NLL of a row's labelled tokens: (n,) float32 on the CPU, in nats."""
        targets = torch.tensor([label for label in row.labels[1:] if label >= 0], device=device)
        at = self.at(seen.to(device), targets)
        parts = [slice(start, start + chunk) for start in range(0, len(targets), chunk)]
        return torch.cat([-at(part).gather(-1, targets[part, None])[:, 0].float().cpu() for part in parts])


def lesson(
    model: nn.Module,
    passes: Passes,
    contexts: Mapping[Tokens, Sequence[Context]],
    max_tokens: int,
    device: torch.device,
) -> tuple[Teacher, dict[Tokens, Seen], dict[Tokens, Tensor]]:
    """Let the reference model read the contexts of each forget row, without dropout.

    Returns:
        The teacher, what it saw of each row, and its NLL of each row's labelled tokens, (n,) on the CPU: their level.

    Raises:
        ConfigError: see `Teacher`.
    """
    teacher = Teacher(passes)
    teacher.head.to(device)
    limits = Limits(None, max_tokens, padded=not passes.packs)
    found: dict[Tokens, Seen] = {}
    with evaluating(model):
        for row, own in contexts.items():
            states = _states(model, passes, [text for context in own for text in context.texts], limits, device)
            parts = torch.split(states, [sum(text.scored for text in context.texts) for context in own])
            picked = [part[list(context.index)] for part, context in zip(parts, own, strict=True)]
            found[row] = Seen(torch.stack(picked), torch.tensor([context.others for context in own]))
        return teacher, found, {row: teacher.nll(row, seen, device) for row, seen in found.items()}


@torch.no_grad()
def _states(model: nn.Module, passes: Passes, rows: Sequence[Tokens], limits: Limits, device: torch.device) -> Tensor:
    """Compute the hidden states that predict the labelled tokens of all rows: (n, d) on the CPU."""
    parts = cut(rows, lambda row: [len(row.input_ids)], limits)
    return torch.cat([passes.states(model, pack_rows({"forget": part}).to(device)).cpu() for part in parts])
