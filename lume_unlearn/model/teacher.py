"""The counterfactual teacher: predictions of the reference model in other contexts, computed once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lume_unlearn.data.contexts import Context, aligned
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import TeacherCache
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.common import at_least_float32
from lume_unlearn.methods.counterfactual import swapped
from lume_unlearn.methods.swap import BASE
from lume_unlearn.model.forward import Passes, evaluating, placed

MOST_TOKENS = 1024
"""Most tokens of unseen texts whose predictions are compared: 200 MB with a vocabulary of 50,000."""

Changed = Callable[[Tensor, Tensor, Tensor], Tensor]


class Teacher:
    """Turns hidden states of the reference model into its predictions (see `methods.counterfactual`)."""

    def __init__(self, passes: Passes) -> None:
        """Copy the output layer of the reference model, the model of ``passes``.

        Raises:
            ConfigError: the model's logits are not simply what its output layer computes of its hidden states.
        """
        self.head = _output_layer(passes, "--method: needs")
        self.base: nn.Module | None = None
        """Output layer of the base model, if it predicts some rows."""
        self.temperature = 1.0
        """The base model's logits are divided by it."""

    @torch.no_grad()
    def log_probs(self, states: Tensor, substitute_ids: Tensor, targets: Tensor, changed: Changed = swapped) -> Tensor:
        """Compute the log of the mean of the probabilities in C contexts: (n, V).

        Args:
            states: (C, n, d).
            substitute_ids: (C, n) token ids: see `contexts.Context`. Where they are `BASE`, the base model predicts.
            targets: (n,) ids of the row's own tokens.
            changed: returns the log-probabilities in one context, given these, ``targets`` and its substitute ids.
        """
        total = targets.new_full((), -torch.inf, dtype=torch.float32)
        for own_states, own_ids in zip(states, substitute_ids, strict=True):
            logits = self.head(own_states)
            if self.base is not None:
                logits = torch.where((own_ids == BASE)[:, None], self.base(own_states) / self.temperature, logits)
            logp = at_least_float32(logits).log_softmax(dim=-1)
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


def _output_layer(passes: Passes, wanted: str) -> nn.Module:
    if not passes.chunks:
        raise ConfigError(f"{wanted} a model whose logits are what its output layer computes; choose another")
    head: Any = getattr(passes.head, "base_layer", passes.head)  # without an adapter on the output layer
    return cast(nn.Module, copy.deepcopy(head).requires_grad_(False))


def run_teacher(
    model: nn.Module,
    passes: Passes,
    contexts: Mapping[Tokens, Sequence[Context]],
    max_tokens: int,
    base: Any = None,
    unseen: Sequence[Tokens] = (),
) -> tuple[Teacher, dict[Tokens, TeacherCache]]:
    """Run the reference model on the contexts of each row, and a base model on those marked `BASE`, without dropout.

    Fine-tuning on few texts makes a model more confident on all texts. The base model's less confident predictions
    would distinguish the forgotten texts from others. So its predictions get the temperature at which they have the
    entropy of the reference model's on unseen texts (`as_sure`).

    Args:
        model: reference model.
        passes: its forward passes.
        contexts: the contexts of each row.
        max_tokens: most tokens of a micro-batch.
        base: base model.
        unseen: texts that neither model saw; only those among the rows of ``contexts`` are used.

    Returns:
        The teacher, and its hidden states for each row, on the CPU.

    Raises:
        ConfigError: see `Teacher`.
    """
    teacher, device = Teacher(passes), next(model.parameters()).device
    teacher.head.to(device)
    if base is None:
        return teacher, teacher_states(model, passes, contexts, max_tokens)
    marked = {row: own for row, own in contexts.items() if BASE in own[0].substitute_ids}
    rest = {row: own for row, own in contexts.items() if row not in marked}
    plain = {row: [aligned(row, row)] for row in unseen if row in rest}
    of_base = Passes(base)
    teacher.base = _output_layer(of_base, "--base: must be").to(device)
    found = teacher_states(model, passes, rest, max_tokens)
    with placed(base, device):
        said = teacher_states(base, of_base, marked | plain, max_tokens)
    if plain:
        wanted = _logits(teacher.head, [found[row] for row in plain], device)
        teacher.temperature = as_sure(wanted, _logits(teacher.base, [said[row] for row in plain], device))
    return teacher, found | {row: said[row] for row in marked}


@torch.no_grad()
def _logits(head: nn.Module, caches: Sequence[TeacherCache], device: torch.device) -> Tensor:
    """Return the logits of at most `MOST_TOKENS` tokens, evenly spaced: (n, V)."""
    states = torch.cat([cache.states[0] for cache in caches])
    some = torch.linspace(0, len(states) - 1, min(len(states), MOST_TOKENS)).long()
    return at_least_float32(head(states[some].to(device)))


def as_sure(wanted: Tensor, logits: Tensor) -> float:
    """Return the temperature, from 1/4 to 4, with which the mean entropy of predictions is nearest to that of others.

    Worked example: logits (0, ln 9), wanted (0, ln 3): 2, since 9^(1/2) = 3.

    Args:
        wanted: (n, V) logits of the other predictions.
        logits: (m, V) logits that the temperature divides.
    """
    from scipy.optimize import minimize_scalar

    def entropy(of: Tensor) -> float:
        logp = of.log_softmax(dim=-1)
        return -float((logp.exp() * logp).sum(dim=-1).mean())

    aim = entropy(wanted)
    found = minimize_scalar(
        lambda power: (entropy(logits * 2**-power) - aim) ** 2,
        bounds=(-2, 2),
        method="bounded",
        options={"xatol": 0.01},
    )
    return float(2**found.x)


def teacher_states(
    model: nn.Module, passes: Passes, contexts: Mapping[Tokens, Sequence[Context]], max_tokens: int
) -> dict[Tokens, TeacherCache]:
    """Return a model's hidden states of each row in its contexts, without dropout, on the CPU."""
    if not contexts:
        return {}
    device = next(model.parameters()).device
    every = [context for own in contexts.values() for context in own]
    with evaluating(model), torch.no_grad():
        texts = passes.batches([text for context in every for text in context.texts], max_tokens, device)
        states = torch.cat([passes.states(model, batch).cpu() for batch in texts])
    parts = iter(torch.split(states, [sum(text.scored for text in context.texts) for context in every]))
    found: dict[Tokens, TeacherCache] = {}
    for row, own in contexts.items():
        picked = [next(parts)[list(context.index)] for context in own]
        found[row] = TeacherCache(torch.stack(picked), torch.tensor([context.substitute_ids for context in own]))
    return found
