"""Checks of the model under evaluation that a task makes after it has built its requests.

The harness gives a task the model's arguments but not the model, so it is taken from the harness's ``evaluate``.
"""

import logging
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from lm_eval.api.model import CachingLM, TemplateLM

from lume_tasks.errors import DataError, first_few
from lume_tasks.tasks.reference import document_name

_log = logging.getLogger("lume_tasks")


def model_under_evaluation() -> Any:
    """Return the ``lm`` of the harness's ``evaluate`` further up the call stack, None if something else calls."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "lm_eval.evaluator" and "lm" in frame.f_locals:
            return frame.f_locals["lm"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def check_model(task: str, requests: Sequence[Any]) -> None:
    """Refuse a model that would silently score something else than LUME; warn of cached answers."""
    lm = model_under_evaluation()
    if isinstance(lm, CachingLM):
        if len(lm.dbdict) and not getattr(lm.lm, "keys_its_answers", False):
            _warn_of_cache(lm.cache_db)
        lm = lm.lm
    tokenizer = getattr(lm, "tokenizer", None) if isinstance(lm, TemplateLM) else None
    if tokenizer is None:  # an API that tokenises the text itself, or a model that reads no text
        return
    if requests[0].request_type == "generate_until":
        check_end(task, lm)
    elif any(request.args[0] == "" for request in requests) and lm.prefix_token_id != tokenizer.bos_token_id:
        raise DataError(
            f"{task}: prefix_token_id={lm.prefix_token_id} would come before each document, where the benchmark has "
            f"the tokenizer's BOS ({tokenizer.bos_token_id}); leave prefix_token_id out of --model_args"
        )
    check_lengths(task, lm, requests)


def check_end(task: str, lm: Any) -> None:
    """Refuse a model whose answers do not end at EOS.

    The harness's ``hf`` relies on the model to end each row of a batch. If the model does not know the tokenizer's EOS,
    it generates on after EOS until each row of the batch has one, and that text would be scored too.
    """
    eos = getattr(lm.tokenizer, "eos_token_id", -1)
    if eos is None:
        raise DataError(
            f"{task}: the tokenizer has no EOS token, at which LUME's generations end; set eos_token in its "
            "tokenizer_config.json, or name the model's own with tokenizer=... in --model_args"
        )
    config = getattr(getattr(lm, "model", None), "generation_config", None)
    if config is None or lm.batch_size == 1:
        return
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if eos not in ends:
        raise DataError(
            f"{task}: the model's eos_token_id is {config.eos_token_id}, the tokenizer's EOS is {eos}: in batches, the "
            "model would generate on after EOS, and that text would be scored too. Set eos_token_id in the model's "
            "generation_config.json, or use --batch_size 1."
        )


def check_lengths(task: str, lm: Any, requests: Sequence[Any]) -> None:
    """Refuse texts that the harness would cut on the left to fit the model."""
    faults = []
    for request in requests:
        context, rest = request.args
        if isinstance(rest, str):
            text, room = context + rest, lm.max_length + 1  # the model never reads the last token
        else:
            text, room = context, lm.max_length - int(rest.get("max_gen_toks") or 0)
        tokens = len(lm.tok_encode(text))
        if tokens > room:
            faults.append(f"  {document_name(request.doc)}: {tokens} tokens, {room} fit")
    if faults:
        head = (
            f"{task}: the model reads {lm.max_length} tokens (max_length), for which {len(faults)} of {len(requests)} "
            "texts, with the new tokens, are too long. The harness would cut them, and LUME scores whole texts only. "
            "Raise max_length in --model_args if the model can take it."
        )
        raise DataError("\n".join([head, *first_few(faults, 10)]))


@cache
def _warn_of_cache(file: str) -> None:
    _log.warning(
        "--use_cache: the harness finds the answers in %s by the request alone. If another model or other arguments "
        "wrote them, the scores are theirs: name another file for each model, or use --model lume-hf.",
        file,
    )
