"""Checks of the model under evaluation that a task makes once it has built its requests.

The harness tells a task the model's arguments, and only where they were given as such: neither the backend nor the
model itself, nor whether ``--use_cache`` names a file. So ``model_under_evaluation`` takes the model from the harness's
``evaluate``, which calls the task; where something else calls it, there is nothing to check.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from lm_eval.api.model import LM, CachingLM

from lume_tasks.errors import DataError, quote

_log = logging.getLogger("lume_tasks")

_FAULTS_SHOWN = 10
_ARGUMENTS_KEY = "lume_tasks: model arguments"  # in a cache file, whose other keys are hashes
_OTHER_ARGUMENTS = {"batch_size", "max_batch_size", "device", "version", "config_source"}  # they change no answer


def model_under_evaluation() -> Any:
    """Return the ``lm`` of the harness's ``evaluate`` further up the call stack (with its cache), else None."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "lm_eval.evaluator" and "lm" in frame.f_locals:
            lm = frame.f_locals["lm"]
            return lm if isinstance(lm, (LM, CachingLM)) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def check_model(task: str, requests: Sequence[Any], metadata: Mapping[str, Any]) -> None:
    """Refuse a model that would silently score something else than LUME; warn of another model's cached answers.

    Args:
        task: its name, for the message.
        requests: the harness's instances of the task.
        metadata: of the task.

    Raises:
        DataError: a prompt would be cut, generation would not stop at EOS, or a document would be scored after another
            token than BOS.
    """
    lm = model_under_evaluation()
    if isinstance(lm, CachingLM):
        lm, answers = lm.lm, lm
        warn_of_other_arguments(answers, lm, metadata)
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is None:  # an API that tokenises itself, or a stand-in of a test
        return
    if requests[0].request_type == "generate_until":
        check_end(task, lm)
    elif any(request.args[0] == "" for request in requests) and lm.prefix_token_id != tokenizer.bos_token_id:
        raise DataError(
            f"{task}: prefix_token_id={lm.prefix_token_id} would stand before each document, where the benchmark has "
            f"the tokenizer's BOS ({tokenizer.bos_token_id}); leave prefix_token_id out of --model_args"
        )
    check_lengths(task, lm, requests)


def check_end(task: str, lm: Any) -> None:
    """Refuse a model whose answers do not end at EOS.

    The harness's ``hf`` leaves it to the model to end each row of a batch. Where the model does not know the
    tokenizer's EOS, rows go on after it until the last one has it, and special tokens are then dropped from the text.

    Raises:
        DataError: the tokenizer has no EOS, or ``hf`` runs batches of a model that does not know it.
    """
    eos = getattr(lm.tokenizer, "eos_token_id", -1)
    if eos is None:
        raise DataError(
            f"{task}: the tokenizer has no EOS token, at which LUME's generations end; set eos_token in its "
            "tokenizer_config.json, or name the model's own with tokenizer=... in --model_args"
        )
    config = getattr(getattr(lm, "model", None), "generation_config", None)
    if config is None or lm.batch_size == 1 or getattr(lm, "ends_rows_at_eos", False):
        return
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if eos not in ends:
        raise DataError(
            f"{task}: the model's eos_token_id is {config.eos_token_id}, the tokenizer's EOS is {eos}: in batches, "
            "--model hf would generate on after EOS and score that text too. Use --model lume-hf or --batch_size 1, "
            "or set eos_token_id in the model's generation_config.json."
        )


def check_lengths(task: str, lm: Any, requests: Sequence[Any]) -> None:
    """Refuse texts that the harness would cut on the left to fit the model.

    Raises:
        DataError: names the rows, with their numbers of tokens.
    """
    faults = []
    for request in requests:
        context, rest = request.args
        if isinstance(rest, str):
            text, room = context + rest, lm.max_length + 1  # the last token is predicted and never read
        else:
            text, room = context, lm.max_length - int(rest.get("max_gen_toks") or 0)
        tokens = len(lm.tok_encode(text))
        if tokens > room:
            faults.append(f"  {_name(request.doc)}: {tokens} tokens, {room} fit")
    if faults:
        more = [f"  and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
        raise DataError(
            "\n".join(
                [
                    f"{task}: the model reads {lm.max_length} tokens (max_length), for which {len(faults)} of "
                    f"{len(requests)} texts, with the new tokens, are too long. The harness would cut them, and LUME "
                    "has whole texts only. Raise max_length in --model_args if the model can take it.",
                    *faults[:_FAULTS_SHOWN],
                    *more,
                ]
            )
        )


def _name(doc: Mapping[str, Any]) -> str:
    if "id" in doc:
        return f"row {quote(doc['id'])}"
    return f"{'member' if doc['member'] else 'nonmember'} document {doc['number']}"


def warn_of_other_arguments(answers: Any, lm: Any, metadata: Mapping[str, Any]) -> None:
    """Warn where a ``--use_cache`` file holds answers that were written under other model arguments.

    The harness looks answers up by the request alone, whatever model gave them. So a file notes the backend and the
    model arguments of its first run. ``lume-hf`` needs no such note: its answers have the model's fingerprint.
    """
    if getattr(lm, "keys_its_answers", False):
        return
    pretrained = getattr(lm, "pretrained", None)
    arguments = {"backend": type(lm).__name__} | ({"pretrained": pretrained} if isinstance(pretrained, str) else {})
    arguments |= {
        name: value for name, value in metadata.items() if name not in _OTHER_ARGUMENTS and not name.startswith("lume_")
    }
    now = ", ".join(f"{name}={value}" for name, value in sorted(arguments.items()))
    if not len(answers.dbdict):
        answers.dbdict[_ARGUMENTS_KEY] = now
    then = answers.dbdict.get(_ARGUMENTS_KEY, "unknown arguments")
    if then != now:
        _warn_once(answers.cache_db, then, now)


@cache
def _warn_once(file: str, then: str, now: str) -> None:
    _log.warning(
        "--use_cache: %s was written with %s, this run has %s. The harness serves its answers whatever model gave "
        "them; name one file a checkpoint.",
        *(file, then, now),
    )
