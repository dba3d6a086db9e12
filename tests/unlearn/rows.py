"""Outputs of a model for one row, in plain PyTorch without padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.special import entr

from lume_unlearn.data.encode import Tokens
from lume_unlearn.methods.common import IGNORED


def make_rows(seed: int, lengths: Sequence[tuple[int, int]], vocabulary: int = 400) -> list[Tokens]:
    """Rows of (tokens, prompt tokens); all but the prompt tokens are labelled."""
    drawn = torch.Generator().manual_seed(seed)
    rows = []
    for length, prompt in lengths:
        ids = tuple(torch.randint(2, vocabulary, (length,), generator=drawn).tolist())
        rows.append(Tokens(ids, (IGNORED,) * prompt + ids[prompt:]))
    return rows


def half_labelled(lengths: Sequence[int], seed: int = 1, vocabulary: int = 400) -> list[Tokens]:
    """Rows whose second half, or last token, is labelled."""
    return make_rows(seed, [(length, max(length // 2, 1)) for length in lengths], vocabulary)


def places(row: Tokens) -> Tensor:
    """Positions of the labelled tokens; no token predicts the first one."""
    return torch.tensor([t for t, label in enumerate(row.labels) if t and label != IGNORED])


def logits(model: Any, row: Tokens) -> Tensor:
    """(labelled tokens, V) logits that predict them."""
    found: Tensor = model(input_ids=torch.tensor([row.input_ids])).logits[0, places(row) - 1]
    return found


def nll(model: Any, row: Tokens) -> Tensor:
    """(labelled tokens,)."""
    targets = torch.tensor(row.input_ids)[places(row)]
    return -log_softmax(logits(model, row), -1)[range(len(targets)), targets]


def states(model: Any, row: Tokens, layer: int) -> Tensor:
    """(labelled tokens, d) hidden states of the tokens themselves after one decoder layer."""
    kept: list[Any] = []
    block = next(module for name, module in model.named_modules() if name.endswith(f".layers.{layer}"))
    handle = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    model(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    output = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    found: Tensor = output[0, places(row)]
    return found


def with_substitutes(row: Tokens) -> list[Tokens]:
    """The row with two other tokens in its middle, twice; they have its labels."""
    middle = len(row.input_ids) // 2
    found = []
    for ids in ((390, 391), (392, 393)):
        changed = (*row.input_ids[: middle - 1], *ids, *row.input_ids[middle + 1 :])
        labels = [new if label != IGNORED else label for new, label in zip(changed, row.labels, strict=True)]
        found.append(Tokens(changed, tuple(labels)))
    return found


def taught(model: Any, row: Tokens, blend: bool) -> Tensor:
    """(labelled tokens, V) mean probabilities in the contexts; with ``blend`` those as is, but for the right tokens."""
    with torch.no_grad():
        mean = torch.stack([logits(model, context).softmax(-1) for context in with_substitutes(row)]).mean(0)
        own, right = logits(model, row).softmax(-1), (range(row.scored), list(row.targets))
    if not blend:
        return mean
    found = own * ((1 - mean[right]) / (1 - own[right]))[:, None]
    found[right] = mean[right]
    return found


def asked(answer: Tokens, other: Tokens) -> Tokens:
    """The answer of one row after the prompt of another."""
    prompt = other.input_ids[: places(other)[0]]
    ids = tuple(answer.input_ids[t] for t in places(answer))
    return Tokens(prompt + ids, (IGNORED,) * len(prompt) + ids)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """(labelled tokens,) KL divergences of logits p from logits q, nats."""
    now, then = log_softmax(p, -1), log_softmax(q, -1)
    return (then.exp() * (then - now)).sum(-1)


def js(p: Tensor, q: Tensor) -> Tensor:
    """(labelled tokens,) Jensen-Shannon divergences: by how much mixing raises the entropy."""
    return entr((p + q) / 2).sum(-1) - (entr(p) + entr(q)).sum(-1) / 2


def made_up(answer: Tokens) -> bool:
    """Whether an answer to imitate is not from the reference model: here those of an odd number of labelled tokens."""
    return answer.scored % 2 == 1


def own_mask(count: int) -> Tensor:
    """Every second labelled token is part of a word that is the row's own."""
    return torch.arange(count).remainder(2).double()
