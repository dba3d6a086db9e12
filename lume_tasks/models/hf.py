"""``--model lume-hf``: the harness's ``hf`` with log-likelihoods that are ``TokenScores``."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers.cache_utils import DynamicCache, DynamicLayer

from lume_tasks.errors import DataError, log
from lume_tasks.metrics.token_scores import TokenScores, token_statistics

ALIKE = 8
"""Rows are sorted by length in steps of this many tokens, then by tokens; a shared beginning has at least as many."""

_PATHS = {"_name_or_path", "base_model_name_or_path"}  # in configurations

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # context and continuation as text, then both as tokens
Answer = tuple[TokenScores, bool]
InputRow = tuple[list[int], list[int]]  # tokens that the model reads, and the numbers of the requests that share them


class LumeHF(HFLM):
    """The stock class for causal models: same arguments, texts and sums, but its log-softmax is always in float32."""

    keys_its_answers = True  # read by lume_tasks.tasks.model_checks, as is the next one
    ignores_max_new_tokens = True

    def __init__(self, *args: Any, gradnorm: bool = False, **kwargs: Any) -> None:
        """Load the model with the arguments of ``HFLM``; ``DataError`` if one is not supported.

        ``gradnorm`` also computes the gradient norm of each document of ``lume_mia``: one forward and backward pass per
        document, with memory for the gradient of all weights.
        """
        if str(kwargs.get("batch_size")).startswith("auto"):
            raise DataError(
                "lume-hf: --batch_size auto is not supported, because the harness sizes generation by the longest text "
                "that the model can read; pass a number, such as 64, and a smaller one if memory runs out"
            )
        super().__init__(*args, **kwargs)
        if self.backend != "causal":
            raise DataError("lume-hf scores causal language models; use --model hf for an encoder-decoder")
        if self.truncation:
            raise DataError("lume-hf: truncation=true would cut the end of a prompt; leave it out of --model_args")
        self.gradnorm = gradnorm
        self._with_gradient: set[tuple[str, str] | None] = set()

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Add the model's fingerprint to the keys of a ``--use_cache`` file, so that it serves no other model."""
        super().set_cache_hook(cache_hook)
        answers = getattr(cache_hook, "dbdict", None)
        if answers is not None:
            settings = [self.max_length, self.mixed_precision_dtype, self.gradnorm, self.add_bos_token]
            settings += [self.prefix_token_id, self.think_end_token]
            own = fingerprint(self.model, self.tokenizer, settings)
            answers.encode_key = lambda key: f"{own} {key}"

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Score the continuation of each request given its context."""
        if self.gradnorm:
            self._with_gradient = {request.args for request in requests if request.task_name == "lume_mia"}
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        self._check_lengths(requests)
        answers: dict[int, Answer] = {}
        hidden = disable_tqdm or self.rank != 0
        batches = list(self._batches(requests))
        # The bar counts tokens: long rows come first, so a bar of requests would show far too much time left.
        tokens = [sum(len(read) for read, _ in batch) for batch, _ in batches]
        bar: Any = {"desc": "Running loglikelihood requests", "unit": "token", "unit_scale": True, "disable": hidden}
        with tqdm(total=sum(tokens), **bar) as progress:
            for (batch, gradient), count in zip(batches, tokens, strict=True):
                for number, scores in self._score(batch, requests, gradient):
                    answers[number] = scores, bool(scores.greedy.all())
                    text = requests[number][0]
                    if text is not None:
                        self.cache_hook.add_partial("loglikelihood", text, answers[number])
                progress.update(count)
        return [answers[number] for number in range(len(requests))]

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        # A max_new_tokens in the model's generation_config would replace the task's limit.
        with patch.object(self.model.generation_config, "max_new_tokens", None):
            return super()._model_generate(*args, **kwargs)

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise DataError(
                f"lume-hf: a text to score has {longest} tokens, but the model reads {self.max_length} at once. "
                "Raise max_length in --model_args if the model can take it, else leave the text out."
            )
        cut = sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests)
        if cut:
            message = "lume-hf: %d of %d contexts are cut on the left to fit the model's %d tokens"
            log.warning(message, cut, len(requests), self.max_length)

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[list[InputRow], bool]]:
        """Yield batches of rows, and whether a batch needs a gradient (it then has one row); long rows come first.

        Requests that show the model the same tokens (the choices of a question) share a row.
        """
        shared: dict[tuple[int, ...], list[int]] = {}
        for number, (text, context, continuation) in enumerate(requests):
            tokens = (context + continuation)[-(self.max_length + 1) : -1]
            if text in self._with_gradient:
                yield [(tokens, [number])], True
            else:
                shared.setdefault(tuple(tokens), []).append(number)
        # Among rows of similar length, those with the same beginning become neighbours: see `read_once`.
        rows = [(list(tokens), numbers) for tokens, numbers in shared.items()]
        rows.sort(key=lambda row: (-(len(row[0]) // ALIKE), row[0]))
        size = int(self.batch_size)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], False

    def _score(
        self, batch: list[InputRow], requests: Sequence[Request], gradient: bool
    ) -> Iterator[tuple[int, TokenScores]]:
        """Run one forward pass over a batch and yield the number and the scores of each request."""
        width = max(len(tokens) for tokens, _ in batch)
        inputs = torch.zeros(len(batch), width, dtype=torch.long)  # padded on the right, which a causal model ignores
        for row, (tokens, _) in enumerate(batch):
            inputs[row, : len(tokens)] = torch.tensor(tokens)
        wanted, positions, targets = _scored_positions(batch, requests, width)
        with _all_parameters(self.model) if gradient else torch.no_grad():
            precision = self.mixed_precision_dtype
            with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
                logits, found = logits_at(self.model, inputs.to(self.device), wanted)
            positions, targets = found[positions].to(logits.device), targets.to(logits.device)
            logprobs, mean, variance, greedy = token_statistics(logits.detach(), positions, targets)
            norm = gradient_norm(self.model, logits[positions], targets) if gradient else None
        start = 0
        for _, numbers in batch:
            for number in numbers:
                of = slice(start, start + len(requests[number][2]))
                yield number, TokenScores(logprobs[of], mean[of], variance[of], greedy[of], norm)
                start = of.stop


def _scored_positions(
    batch: list[InputRow], requests: Sequence[Request], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the positions whose logits are needed, and the index of the position of each target token.

    Returns:
        ``wanted`` (m,): sorted and distinct positions in the flattened inputs, rows of ``width`` tokens;
        ``positions`` (n,): the index in ``wanted`` of each scored token, request after request (the choices of a
        question share one); ``targets`` (n,): the scored tokens.
    """
    places: list[int] = []
    targets: list[int] = []
    for row, (tokens, numbers) in enumerate(batch):
        end = row * width + len(tokens)
        for number in numbers:
            continuation = requests[number][2]
            places += range(end - len(continuation), end)
            targets += continuation
    wanted, positions = torch.unique(torch.tensor(places), return_inverse=True)
    return wanted, positions, torch.tensor(targets)


def logits_at(model: Any, inputs: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one forward pass and return logits (k, vocabulary) and the row of each wanted position in them (m,).

    The output layer reads the hidden states at the wanted positions only, as one row of m tokens: k = m. The model then
    scales or caps its logits as usual. All logits are computed (k = rows * width) if the model has no output layer, or
    calls it on other shapes than (rows, tokens, hidden size). A beginning that all rows share, such as that of a chat
    template, is read once (see `read_once`).

    Args:
        model: a causal language model of transformers, with or without a PEFT adapter.
        inputs: (rows, width) tokens, padded on the right.
        wanted: (m,) positions in the flattened inputs: ``row * width + column``.
    """
    inputs, wanted, cache = read_once(model, inputs, wanted)
    rows, width = inputs.shape
    picked = False

    def flat(values: torch.Tensor) -> torch.Tensor:
        return values[:, -width:].flatten(0, 1)  # prompt tuning adds virtual tokens at the start of a row

    def before_output(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        nonlocal picked
        states = args[0]
        if states.dim() != 3 or len(states) != rows or states.shape[1] < width:
            return None
        picked = True
        return flat(states)[None, wanted.to(states.device)], *args[1:]

    layer = getattr(model, "get_output_embeddings", lambda: None)()
    with layer.register_forward_pre_hook(before_output) if layer is not None else nullcontext():
        logits: torch.Tensor = model(inputs, **cache).logits
    return (logits[0], torch.arange(len(wanted))) if picked else (flat(logits), wanted)


def read_once(
    model: Any, inputs: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Run the beginning that all rows share through the model once, if it has at least a quarter of the width.

    The inputs stay whole if gradients are needed, or if the model cannot continue from a cache (see `goes_on`).

    Returns:
        the rest of the inputs (rows, rest), the wanted positions in it, and model arguments with the cache of the
        beginning.
    """
    rows, width = inputs.shape
    length = 0
    if rows > 1 and not torch.is_grad_enabled():
        alike = (inputs == inputs[0]).all(dim=0).long().cumprod(0).sum()
        length = min(int(alike), int((wanted % width).min()))
    if length < max(ALIKE, width // 4) or not goes_on(model):
        return inputs, wanted, {}
    cache = DynamicCache(config=model.config)
    model(inputs[:1, :length], cache=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    rest = width - length
    return inputs[:, length:], wanted // width * rest + wanted % width - length, {"cache": cache}


def goes_on(model: Any) -> bool:
    """Return whether a model can continue from a cache of plain keys and values, and has no virtual tokens."""
    layers = DynamicCache(config=model.config).layers
    adapter = getattr(model, "active_peft_config", None)
    takes_cache = "cache" in signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return plain and takes_cache and not getattr(adapter, "is_prompt_learning", False)


def gradient_norm(model: torch.nn.Module, logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Compute the mean over parameter tensors of the L2 norm of the gradient of the mean token loss.

    Wang et al. 2024, "Pandora's White-Box" (arXiv 2402.17012). Parameters on which the loss does not depend are left
    out; ``.grad`` does not change. ``logits`` is (n, vocabulary) at the scored positions of one document, ``targets``
    (n,).
    """
    loss = torch.nn.functional.cross_entropy(logits.float(), targets)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [float(torch.linalg.vector_norm(g, dtype=torch.float32)) for g in gradients if g is not None]
    return sum(norms) / len(norms)


@contextmanager
def _all_parameters(model: torch.nn.Module) -> Iterator[None]:
    """Compute gradients for all floating-point parameters, also frozen ones (such as those under an adapter)."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def fingerprint(model: Any, tokenizer: Any, settings: list[Any]) -> str:
    """Return the SHA-256 of everything that changes a model's answers, without the names of its folders.

    That is its weights, configurations and adapters, the tokenizer, and ``settings``.
    """
    configs = [model.config, getattr(model, "generation_config", None), *getattr(model, "peft_config", {}).values()]
    parts = [{k: v for k, v in one.to_dict().items() if k not in _PATHS} for one in configs if one is not None]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    rules |= {"padding": None, "truncation": None}  # these change whenever the tokenizer is called
    parts += [rules, tokenizer.special_tokens_map, *settings]
    described = json.dumps(parts, sort_keys=True, default=_plain)
    digest = hashlib.sha256(described.encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
