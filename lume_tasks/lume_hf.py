"""``--model lume-hf``: the harness's ``hf`` whose log-likelihoods are ``TokenScores``."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lume_tasks.rows import DataError, quote
from lume_tasks.token_scores import TokenScores, token_statistics

_log = logging.getLogger("lume_tasks")

# (context, continuation) as text, None for a rolling window; then both as tokens
Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[TokenScores, bool]

GRADIENT_TASK = "lume_mia"


@dataclass
class InputRow:
    """What the model reads once, and the requests that this answers (the choices of a question, say)."""

    tokens: tuple[int, ...]
    gradient: bool
    requests: list[int] = field(default_factory=list)  # their places in the list of requests


class LumeHF(HFLM):
    """The stock class for causal models: same arguments, same sums, but its log-softmax is always in float32."""

    def __init__(self, *args: Any, gradnorm: bool = False, **kwargs: Any) -> None:
        """Load the model.

        Args:
            *args: of ``HFLM``.
            gradnorm: also compute the gradient norm of each document of ``lume_mia``: those documents go through the
                model one at a time, with a backward pass each, and need memory for the gradient of all weights.
            **kwargs: of ``HFLM``.

        Raises:
            DataError: the model is an encoder-decoder, or ``gradnorm`` is neither true nor false.
        """
        if not isinstance(gradnorm, bool):
            raise DataError(f"lume-hf: gradnorm has to be true or false, not {gradnorm!r}")
        super().__init__(*args, **kwargs)
        if self.backend != "causal":
            raise DataError("lume-hf scores causal language models; use --model hf for an encoder-decoder")
        self.gradnorm = gradnorm
        self._with_gradient: set[tuple[str, str] | None] = set()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Score the continuation of each request given its context; one answer a request, in order."""
        if self.gradnorm:
            self._with_gradient = {request.args for request in requests if request.task_name == GRADIENT_TASK}
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        check_lengths(requests, self.max_length)
        answers: dict[int, Answer] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Running loglikelihood requests") as progress:
            for batch in self._batches(requests, override_bs):
                for index, scores in self._score(batch, requests):
                    answers[index] = scores, bool(scores.greedy.all())
                    text = requests[index][0]
                    if text is not None:
                        self.cache_hook.add_partial("loglikelihood", text, answers[index])
                    progress.update(1)
        return [answers[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence[Request], override_bs: int | None) -> Iterator[list[InputRow]]:
        """The rows in batches of the harness's batch size; those with a gradient alone."""
        rows = self._input_rows(requests)
        yield from ([row] for row in rows if row.gradient)
        rows = [row for row in rows if not row.gradient]
        shown = [max((requests[index] for index in row.requests), key=lambda request: len(request[2])) for row in rows]
        self.batch_sizes: dict[int, int] = {}  # a size found for other requests need not fit these
        start = 0
        while start < len(rows):
            size = self.batch_size
            if size == "auto":
                size = override_bs or self._automatic_size(start, shown)
            yield rows[start : start + size]
            start += size

    def _input_rows(self, requests: Sequence[Request]) -> list[InputRow]:
        """Requests that show the model the same tokens share a row; long rows first, so that memory runs out early."""
        rows: dict[tuple[Any, ...], InputRow] = {}
        for index, (text, context, continuation) in enumerate(requests):
            tokens = tuple((context + continuation)[-(self.max_length + 1) :][:-1])
            gradient = text in self._with_gradient
            # A gradient is that of one continuation, so there only equal requests share a row.
            key = (tokens, len(continuation), continuation[-1]) if gradient else (tokens,)
            rows.setdefault(key, InputRow(tokens, gradient)).requests.append(index)
        return sorted(rows.values(), key=lambda row: -len(row.tokens))

    def _automatic_size(self, start: int, requests: list[Request]) -> int:
        if len(requests) < self.batch_schedule:  # fewer than the parts into which the stock scheduler divides them
            return int(self._detect_batch_size(requests, start))
        return int(self._batch_scheduler(start, requests))

    def _score(self, batch: list[InputRow], requests: Sequence[Request]) -> Iterator[tuple[int, TokenScores]]:
        """Run the model once over a batch, longest row first; give each request's place and scores."""
        gradient = batch[0].gradient
        with _all_parameters(self.model) if gradient else torch.no_grad():
            logits = self._logits(batch, gradient)
            positions, targets, spans = _targets(batch, requests, logits.shape[1])
            positions, targets = positions.to(logits.device), targets.to(logits.device)
            logits = logits.flatten(0, 1)
            logprobs, mean, variance, greedy = token_statistics(logits.detach(), positions, targets)
            norm = gradient_norm(self.model, logits[positions], targets[:, 0]) if gradient else None
        for index, (where, column) in spans.items():
            yield (
                index,
                TokenScores(logprobs[where, column], mean[where], variance[where], greedy[where, column], norm),
            )

    def _logits(self, batch: list[InputRow], gradient: bool) -> torch.Tensor:
        """Logits (rows, longest row, vocabulary); rows are padded on the right, which a causal model does not see."""
        inputs = torch.zeros(len(batch), len(batch[0].tokens), dtype=torch.long)
        for number, row in enumerate(batch):
            inputs[number, : len(row.tokens)] = torch.tensor(row.tokens)
        inputs = inputs.to(self.device)
        logits: torch.Tensor
        if not gradient:
            logits = self._model_call(inputs)
            return logits
        precision = self.mixed_precision_dtype  # as in the stock call, which switches gradients off
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            logits = self.model(inputs).logits
        return logits


def check_lengths(requests: Sequence[Request], max_length: int) -> None:
    """Refuse what would be scored in part only; warn where contexts are cut, as the stock class does.

    Raises:
        DataError: a continuation has more tokens than the model reads at once, or none.
    """
    for text, context, continuation in requests:
        shown = f"the text {quote(''.join(text))}" if text else "a rolling window"
        if not context or not continuation:
            part = "continuation" if context else "context"
            raise DataError(f"lume-hf: {shown} has no token in its {part}, so that there is nothing to score")
        if len(continuation) > max_length:
            raise DataError(
                f"lume-hf: {shown} has {len(continuation)} tokens to score, but the model reads {max_length} at once; "
                "rows are never cut to fit, since the sum would be that of another text. Raise max_length in "
                "--model_args if the model can take it, else leave the text out."
            )
    cut = sum(len(context) + len(continuation) > max_length + 1 for _, context, continuation in requests)
    if cut:
        _log.warning(
            "lume-hf: %d of %d contexts are cut on the left to fit the model's %d tokens; the rest is scored whole",
            *(cut, len(requests), max_length),
        )


def gradient_norm(model: torch.nn.Module, logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean over the model's parameter tensors of the L2 norm of the gradient of the mean token loss.

    Wang et al. 2024, "Pandora's White-Box" (arXiv 2402.17012). Parameters on which the loss does not depend are left
    out; ``.grad`` stays as it is.

    Args:
        model: what the logits come from, with gradients switched on.
        logits: (n, vocabulary) at the n scored positions of one document.
        targets: (n,) its tokens there.
    """
    loss = torch.nn.functional.cross_entropy(logits.float(), targets)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [float(torch.linalg.vector_norm(g, dtype=torch.float32)) for g in gradients if g is not None]
    return sum(norms) / len(norms)


@contextmanager
def _all_parameters(model: torch.nn.Module) -> Iterator[None]:
    """Gradients of every floating-point parameter, frozen ones (as below an adapter) too; then frozen again."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _targets(
    batch: list[InputRow], requests: Sequence[Request], length: int
) -> tuple[torch.Tensor, torch.Tensor, dict[int, tuple[slice, int]]]:
    """Which logits are scored against what, ``length`` logits a row.

    Returns:
        positions (n,) in the flattened logits; targets (n, a), a column for each of the requests that share a row, 0
        where nothing is asked; request to the (entries, column) of its continuation.
    """
    positions, targets = [], []
    spans: dict[int, tuple[slice, int]] = {}
    columns = max(len(row.requests) for row in batch)
    virtual = length - len(batch[0].tokens)  # tokens that prompt tuning puts in front
    count = 0
    for number, row in enumerate(batch):
        end = number * length + virtual + len(row.tokens)
        longest = max(len(requests[index][2]) for index in row.requests)
        count += longest
        wanted = torch.zeros(longest, columns, dtype=torch.long)
        for column, index in enumerate(row.requests):
            continuation = requests[index][2]
            wanted[longest - len(continuation) :, column] = torch.tensor(continuation)
            spans[index] = slice(count - len(continuation), count), column
        positions.append(torch.arange(end - longest, end))
        targets.append(wanted)
    return torch.cat(positions), torch.cat(targets), spans
