"""``--model lume-hf``: the harness's ``hf`` whose log-likelihoods are ``TokenScores`` and whose batches fit."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from lume_tasks.errors import DataError
from lume_tasks.metrics.token_scores import TokenScores, token_statistics
from lume_tasks.models.batching import Budget, run_in_batches
from lume_tasks.models.fingerprint import fingerprint

_log = logging.getLogger("lume_tasks")

# (context, continuation) as text, None for a rolling window; then both as tokens
Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[TokenScores, bool]

GRADIENT_TASK = "lume_mia"

# Tokens of an automatic batch on a CPU, where a process that takes too much memory is ended rather than told. Scoring
# holds a logit for each token and word of the vocabulary, generation keys and values alone.
CPU_GENERATION_TOKENS = 2**13
CPU_SCORING_TOKENS = 2**12
MAX_AUTOMATIC_ROWS = 256


@dataclass
class InputRow:
    """What the model reads once, and the requests that this answers (the choices of a question, say)."""

    tokens: tuple[int, ...]
    gradient: bool
    requests: list[int] = field(default_factory=list)  # their places in the list of requests


@dataclass
class Prompt:
    """What the model continues."""

    index: int  # of the request
    tokens: list[int]


class LumeHF(HFLM):
    """The stock class for causal models: same arguments, same sums, but its log-softmax is always in float32."""

    # Read by lume_tasks.tasks.model_checks
    ends_rows_at_eos = True
    keys_its_answers = True

    def __init__(
        self, *args: Any, gradnorm: bool = False, max_batch_size: int = MAX_AUTOMATIC_ROWS, **kwargs: Any
    ) -> None:
        """Load the model.

        Args:
            *args: of ``HFLM``.
            gradnorm: also compute the gradient norm of each document of ``lume_mia``: those documents go through the
                model one at a time, with a backward pass each, and need memory for the gradient of all weights.
            max_batch_size: rows of the first batch that ``batch_size=auto`` tries.
            **kwargs: of ``HFLM``.

        Raises:
            DataError: the model is an encoder-decoder, ``gradnorm`` is neither true nor false, or ``truncation`` is
                asked for.
        """
        if not isinstance(gradnorm, bool):
            raise DataError(f"lume-hf: gradnorm has to be true or false, not {gradnorm!r}")
        super().__init__(*args, max_batch_size=max_batch_size, **kwargs)
        if self.backend != "causal":
            raise DataError("lume-hf scores causal language models; use --model hf for an encoder-decoder")
        if self.truncation:
            raise DataError("lume-hf: truncation=true would cut the end off a prompt; leave it out of --model_args")
        self.gradnorm = gradnorm
        self._with_gradient: set[tuple[str, str] | None] = set()
        self._generation_budget = self._budget(CPU_GENERATION_TOKENS)
        self._scoring_budget = self._budget(CPU_SCORING_TOKENS)

    def _budget(self, cpu_tokens: int) -> Budget:
        if self.batch_size != "auto":
            return Budget(int(self.batch_size))
        return Budget(self.max_batch_size, cpu_tokens if self.device.type == "cpu" else math.inf)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        return int(self.max_batch_size)  # nothing is tried out beforehand: batches shrink at work

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Put the model's fingerprint before each key of a ``--use_cache`` file: it serves no other."""
        super().set_cache_hook(cache_hook)
        answers = getattr(cache_hook, "dbdict", None)
        if answers is not None:
            own = fingerprint(self.model, [self.max_length, self.mixed_precision_dtype])
            answers.encode_key = lambda key: f"{own} {key}"

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
            for scored in self._scored(requests):
                for index, scores in scored:
                    answers[index] = scores, bool(scores.greedy.all())
                    text = requests[index][0]
                    if text is not None:
                        self.cache_hook.add_partial("loglikelihood", text, answers[index])
                    progress.update(1)
        return [answers[index] for index in range(len(requests))]

    def _scored(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, TokenScores]]]:
        """Places and scores of the requests of each batch; rows with a gradient are batches of their own."""
        rows = self._input_rows(requests)
        yield from (self._score([row], requests) for row in rows if row.gradient)
        rows = [row for row in rows if not row.gradient]
        widths = [len(row.tokens) for row in rows]
        yield from run_in_batches(rows, widths, self._scoring_budget, lambda batch: self._score(batch, requests))

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

    def _score(self, batch: Sequence[InputRow], requests: Sequence[Request]) -> list[tuple[int, TokenScores]]:
        """Run the model once over a batch, longest row first; give each request's place and scores."""
        gradient = batch[0].gradient
        with _all_parameters(self.model) if gradient else torch.no_grad():
            logits = self._logits(batch, gradient)
            positions, targets, spans = _targets(batch, requests, logits.shape[1])
            positions, targets = positions.to(logits.device), targets.to(logits.device)
            logits = logits.flatten(0, 1)
            logprobs, mean, variance, greedy = token_statistics(logits.detach(), positions, targets)
            norm = gradient_norm(self.model, logits[positions], targets[:, 0]) if gradient else None
        return [
            (index, TokenScores(logprobs[where, column], mean[where], variance[where], greedy[where, column], norm))
            for index, (where, column) in spans.items()
        ]

    def _logits(self, batch: Sequence[InputRow], gradient: bool) -> torch.Tensor:
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

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue the prompt of each request, text for text as the stock class does; one text a request, in order.

        Each prompt is tokenised once. Prompts of about the same length share a batch, within the groups of rows that
        a task forms.

        Raises:
            DataError: the new tokens leave no room for a prompt.
        """
        answers: dict[int, str] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Running generate_until requests") as progress:
            for index, text in chain.from_iterable(self._generated(requests)):
                answers[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
                progress.update(1)
        return [answers[index] for index in range(len(requests))]

    def _generated(self, requests: Sequence[Any]) -> Iterator[list[tuple[int, str]]]:
        """Places and texts of the requests of each batch; those of other options or another group never share one."""
        groups: dict[tuple[str, str], tuple[dict[str, Any], list[Prompt]]] = {}
        cut = 0
        for index, request in enumerate(requests):
            text, given = request.args
            options = self._options(given)
            tokens, room = self.tok_encode(text), self.max_length - options["max_gen_toks"]
            cut += len(tokens) > room
            # What lume_tasks.tasks.generation.NewTokens says, which the options, with its plain number, no longer do.
            key = repr(sorted(options.items())), getattr(given.get("max_gen_toks"), "group", "")
            groups.setdefault(key, (options, []))[1].append(Prompt(index, tokens[-room:]))
        if cut:
            _log.warning(
                "lume-hf: %d of %d prompts are cut on the left to leave room for the new tokens", cut, len(requests)
            )
        for options, prompts in groups.values():
            prompts.sort(key=lambda prompt: -len(prompt.tokens))
            widths = [len(prompt.tokens) + options["max_gen_toks"] for prompt in prompts]
            yield from run_in_batches(prompts, widths, self._generation_budget, partial(self._generate, options))

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Generation options as the stock class understands them.

        Raises:
            DataError: the new tokens leave no room for a prompt.
        """
        options: dict[str, Any] = dict(normalize_gen_kwargs(given, self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        options["until"] = handle_stop_sequences(options["until"], eos=eos)
        if options["max_gen_toks"] >= self.max_length:
            raise DataError(
                f"lume-hf: {options['max_gen_toks']} new tokens leave no room for a prompt, because the model reads "
                f"{self.max_length} at once; lower max_gen_toks in --gen_kwargs, or raise max_length in --model_args "
                "if the model can take it"
            )
        return options

    def _generate(self, options: dict[str, Any], batch: Sequence[Prompt]) -> list[tuple[int, str]]:
        """Run the model over a batch; give each request's place and text."""
        kwargs = dict(options)
        until, new_tokens = kwargs.pop("until"), kwargs.pop("max_gen_toks")
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        width = max(len(prompt.tokens) for prompt in batch)
        inputs = torch.full((len(batch), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(inputs)
        for number, prompt in enumerate(batch):
            inputs[number, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            mask[number, width - len(prompt.tokens) :] = 1
        generated = self._model_generate(
            context=inputs.to(self.device),
            attention_mask=mask.to(self.device),
            stop=[text for text in until if text != eos],
            max_length=kwargs.pop("max_length", width + new_tokens),
            **kwargs,
        )
        rows = generated[:, width:].tolist()
        return [(prompt.index, self._text(tokens, until)) for prompt, tokens in zip(batch, rows, strict=True)]

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        """Generate with the tokenizer's EOS among the model's own end tokens.

        The stock class looks for EOS in the text of every row at every step, and ends a batch where all rows have it.
        """
        ends = self.model.generation_config.eos_token_id
        own = ends if isinstance(ends, list) else [] if ends is None else [ends]
        options = {"eos_token_id": sorted({self.eot_token_id, *own})} | options
        generated: torch.Tensor = super()._model_generate(context=context, max_length=max_length, stop=stop, **options)
        return generated

    def _text(self, tokens: list[int], until: list[str]) -> str:
        """What was generated, cut as the stock class does: before stop texts, after the end of thinking."""
        end = self.think_end_token
        if isinstance(end, int) and end in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(end) :]
        text = self.tok_decode(tokens)
        return str(
            postprocess_generated_text(
                text.lstrip() if isinstance(end, int) else text,
                stop=until,
                think_end_token=end if isinstance(end, str) else None,
            )
        )


def check_lengths(requests: Sequence[Request], max_length: int) -> None:
    """Refuse what would be scored in part only; warn where contexts are cut, as the stock class does.

    Raises:
        DataError: a continuation has more tokens than the model reads at once, or none.
    """
    for number, (text, context, continuation) in enumerate(requests, 1):
        # By its place, since the text itself may hold what is to be forgotten.
        shown = f"text {number} of {len(requests)} ({sum(map(len, text))} characters)" if text else "a rolling window"
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
    batch: Sequence[InputRow], requests: Sequence[Request], length: int
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
