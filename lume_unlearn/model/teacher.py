"""The counterfactual teacher: what the reference model predicts without knowing the forget rows, computed once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lume_unlearn.data.contexts import Context
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import TeacherCache
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.common import at_least_float32
from lume_unlearn.methods.counterfactual import swapped
from lume_unlearn.model.forward import Passes, evaluating

Changed = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    def log_probs(self, states: Tensor, substitute_ids: Tensor, targets: Tensor, changed: Changed = swapped) -> Tensor:
        """Compute the log of the mean of the probabilities in C contexts: (n, V).

        Args:
            states: (C, n, d).
            substitute_ids: (C, n) token ids: see `contexts.Context`.
            targets: (n,) ids of the row's own tokens.
            changed: returns the log-probabilities in one context, given these, ``targets`` and its substitute ids.
        """
        total = targets.new_full((), -torch.inf, dtype=torch.float32)
        for own_states, own_ids in zip(states, substitute_ids, strict=True):
            logp = at_least_float32(self.head(own_states)).log_softmax(dim=-1)
            total = torch.logaddexp(total, changed(logp, targets, own_ids))
        return total - torch.tensor(len(states)).log()

    def at(self, cache: TeacherCache | None, targets: Tensor, changed: Changed = swapped) -> Callable[[slice], Tensor]:
        """Return a function from a slice of the tokens to `log_probs`; ``targets`` (n,), none if ``cache`` is None."""
        if cache is None:
            weight: Any = self.head.weight
            return lambda part: weight.new_zeros(0, len(weight))
        states, ids = cache.states, cache.substitute_ids
        return lambda part: self.log_probs(states[:, part], ids[:, part], targets[part], changed)

    def nll(self, row: Tokens, cache: TeacherCache, device: torch.device | str, chunk: int = 256) -> Tensor:
        """Compute the teacher's NLL of a row's labelled tokens: (n,) float32 on the CPU, in nats."""
        targets = torch.tensor(row.targets, device=device)
        at = self.at(cache.to(device), targets)
        parts = [slice(start, start + chunk) for start in range(0, len(targets), chunk)]
        return torch.cat([-at(part).gather(-1, targets[part, None])[:, 0].float().cpu() for part in parts])


def run_teacher(
    model: nn.Module, passes: Passes, contexts: Mapping[Tokens, Sequence[Context]], max_tokens: int
) -> tuple[Teacher, dict[Tokens, TeacherCache]]:
    """Run the reference model on the contexts of each row, without dropout.

    Returns:
        The teacher, and its hidden states for each row, on the CPU.

    Raises:
        ConfigError: see `Teacher`.
    """
    teacher, device = Teacher(passes), next(model.parameters()).device
    teacher.head.to(device)
    every = [context for own in contexts.values() for context in own]
    with evaluating(model), torch.no_grad():
        texts = passes.batches([text for context in every for text in context.texts], max_tokens, device)
        states = torch.cat([passes.states(model, batch).cpu() for batch in texts])
    parts = iter(torch.split(states, [sum(text.scored for text in context.texts) for context in every]))
    found: dict[Tokens, TeacherCache] = {}
    for row, own in contexts.items():
        picked = [next(parts)[list(context.index)] for context in own]
        found[row] = TeacherCache(torch.stack(picked), torch.tensor([context.substitute_ids for context in own]))
    return teacher, found
