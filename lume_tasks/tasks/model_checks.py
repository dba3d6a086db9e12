"""Checks of the model under evaluation that a task makes after it has built its requests.

The harness gives a task the model's arguments, but neither the model nor the file of ``--use_cache``. So
``model_under_evaluation`` takes the model from the stack frame of the harness's ``evaluate``, which calls the task.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM, CachingLM, TemplateLM

from lume_tasks.data.published import DIGEST
from lume_tasks.errors import DataError, log, raise_problems, warn_once
from lume_tasks.tasks.reference import document_name

# Options of a model's generation_config.json that change greedy text, and their values that do not.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "num_beams", "guidance_scale"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "stop_strings")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "max_time", "dola_layers", "penalty_alpha")),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config")),
}

# Model arguments of the harness that decide which tokenizer is loaded.
_TOKENIZER_ARGS = ("revision", "subfolder", "use_fast_tokenizer", "add_bos_token", "gguf_file", "trust_remote_code")

_ARGUMENTS_KEY = "lume_tasks: model arguments"  # in a cache file, whose other keys are hashes
_OTHER_ARGUMENTS = {"batch_size", "max_batch_size", "device", "version", "config_source", DIGEST}
"""Metadata that does not change a model's answer to a request."""


_CHAT_TEMPLATE = (
    "the model has a chat template, but the prompts of LUME are bare texts: a model that answers only through its "
    "template seems to know nothing. Rows of your own tasks (lume_rows) are asked through the template."
)


def model_under_evaluation() -> Any:
    """Return the ``lm`` of the harness's ``evaluate`` further up the call stack, None outside of it."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "lm_eval.evaluator" and "lm" in frame.f_locals:
            lm = frame.f_locals["lm"]
            return lm if isinstance(lm, (LM, CachingLM)) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def refuse_chat_endpoint(task: str) -> None:
    """Refuse the harness's ``local-chat-completions`` and its kind, which take messages only."""
    lm = model_under_evaluation()
    lm = lm.lm if isinstance(lm, CachingLM) else lm
    if any(kind.__name__ == "LocalChatCompletion" for kind in type(lm).__mro__):
        raise DataError(
            f"{task}: {type(lm).__name__} takes messages only and returns no log-likelihoods, and LUME sends finished "
            "prompts; use --model local-completions with the server's /v1/completions"
        )


def check_model(task: str, requests: Sequence[Any], metadata: Mapping[str, Any]) -> None:
    """Refuse a model that would silently score something other than LUME; warn of another model's cached answers.

    Raises:
        DataError: a text would be cut or lack its BOS, generation would not stop at EOS, a document would be scored
            after a token other than BOS, or the metadata names another model's tokenizer.
    """
    lm = model_under_evaluation()
    if isinstance(lm, CachingLM):
        warn_of_other_arguments(lm, metadata)
        lm = lm.lm
    tokenizer = getattr(lm, "tokenizer", None) if isinstance(lm, TemplateLM) else None
    if tokenizer is None:  # an API that tokenises the text itself, or a model that reads no text
        return
    if requests[0].request_type == "generate_until":
        if task != "lume_rows" and getattr(tokenizer, "chat_template", None):
            warn_once(log, _CHAT_TEMPLATE)
        check_end(task, lm)
        check_generation_config(task, lm, [request.args[1] for request in requests])
    elif any(request.args[0] == "" for request in requests) and lm.prefix_token_id != tokenizer.bos_token_id:
        raise DataError(
            f"{task}: prefix_token_id={lm.prefix_token_id} would come before each document, where the benchmark has "
            f"the tokenizer's BOS ({tokenizer.bos_token_id}); leave prefix_token_id out of --model_args"
        )
    if str(metadata.get("add_bos_token")).lower() != "false":
        remote = not hasattr(tokenizer, "convert_ids_to_tokens")  # it never adds special tokens
        check_bos(task, lm, load_tokenizer(metadata) if remote else tokenizer, requests)
    check_counts(task, lm, requests)
    if hasattr(lm, "max_length"):  # no attribute of the harness's base class
        check_lengths(task, lm, requests)


def load_tokenizer(metadata: Mapping[str, Any]) -> Any:
    """Load the tokenizer of the model under evaluation.

    In ``metadata``, ``tokenizer`` takes precedence over ``pretrained`` and ``model`` (API backends). Each is a name, a
    folder or an object. ``DataError`` if none is given (an LM object was passed), or the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    source = metadata.get("tokenizer") or metadata.get("pretrained") or metadata.get("model")
    if source is None:
        raise DataError(
            "LUME needs the model's tokenizer to count tokens, and the model arguments name none. Pass a name, a "
            'folder or the tokenizer itself: --metadata \'{"tokenizer": "NAME_OR_FOLDER"}\', or in Python '
            'simple_evaluate(..., metadata={"tokenizer": ...}) or TaskManager(metadata={"tokenizer": ...})'
        )
    if not isinstance(source, str) and callable(getattr(source, "encode", None)):
        return source
    source = str(getattr(source, "name_or_path", source))  # the name of a model object
    given = {name: metadata[name] for name in _TOKENIZER_ARGS if metadata.get(name) is not None}
    if metadata.get("tokenizer"):
        given.pop("gguf_file", None)  # holds the model's own tokenizer, which this one replaces
    if "use_fast_tokenizer" in given:
        given["use_fast"] = given.pop("use_fast_tokenizer")
    try:
        return AutoTokenizer.from_pretrained(source, **given)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"LUME could not load the tokenizer {source!r}: {error}\n"
            'Name another one with --metadata \'{"tokenizer": "NAME_OR_FOLDER"}\'.'
        ) from error


def check_counts(task: str, lm: Any, requests: Sequence[Any]) -> None:
    """Refuse a model whose tokenizer is not the one in the metadata, by whose number of tokens losses are divided."""
    for request in requests:
        scored = request.doc.get("scored_tokens")
        if scored is None:
            return
        context, text = request.args
        tokens = lm._encode_pair(context, text)[1] if context else lm.tok_encode(text, add_special_tokens=False)
        if len(tokens) != scored:
            raise DataError(
                f"{task}: the model scores {len(tokens)} tokens of {document_name(request.doc)}, the tokenizer in the "
                f"metadata makes {scored}; name the model's own tokenizer there"
            )


def check_bos(task: str, lm: Any, tokenizer: Any, requests: Sequence[Any]) -> None:
    """Refuse a backend that leaves out the BOS that the tokenizer puts before a text, as API backends do by default.

    A server that gets texts instead of tokens adds it by itself.
    """
    bos, text = tokenizer.bos_token_id, next((request.args[0] for request in requests if request.args[0]), "")
    adds = bos is not None and tokenizer.encode("")[:1] == [bos]
    if text and adds and getattr(lm, "tokenized_requests", True) and lm.tok_encode(text)[:1] != [bos]:
        raise DataError(
            f"{task}: the tokenizer begins each text with {tokenizer.bos_token}, and {type(lm).__name__} leaves it "
            "out, so the model would read other prompts than in training; add add_bos_token=True to --model_args, and "
            "for API models tokenizer_backend=huggingface (add_bos_token=False scores without it)"
        )


def check_end(task: str, lm: Any) -> None:
    """Refuse a tokenizer without EOS, and batches of a model whose generation config lacks the tokenizer's EOS.

    The harness's ``hf`` relies on the model to stop each row of a batch, and also scores the text after an EOS.
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


def check_generation_config(task: str, lm: Any, options: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a model whose generation config has another ``max_new_tokens``; warn of what else changes its texts.

    ``options`` are the generation options of the requests. ``lume-hf`` ignores the model's ``max_new_tokens``.
    """
    config = getattr(getattr(lm, "model", None), "generation_config", None)
    most = getattr(config, "max_new_tokens", None)
    ignored = most is None or getattr(lm, "ignores_max_new_tokens", False)
    if not ignored and any(one.get("max_gen_toks") != most for one in options):
        raise DataError(
            f"{task}: the model's generation_config has max_new_tokens={most}, which would replace the task's "
            f"limit of {options[0].get('max_gen_toks')} new tokens; take it out of generation_config.json, or use "
            "--model lume-hf"
        )
    found = {name: getattr(config, name, None) for name in _NEUTRAL if name not in options[0]}
    changed = [f"{name}={value}" for name, value in found.items() if value not in (None, _NEUTRAL[name])]
    if changed:
        text = (
            "the model's generation_config.json has %s, which changes its answers; the benchmark's own script "
            "generates with it, too. For plain greedy decoding, take it out of that file."
        )
        warn_once(log, text, ", ".join(changed))


def check_lengths(task: str, lm: Any, requests: Sequence[Any]) -> None:
    """Refuse texts that the harness would cut on the left to fit the model; list their names and lengths in tokens."""
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
    head = (
        f"{task}: the model reads {lm.max_length} tokens (max_length), and {len(faults)} of {len(requests)} texts, "
        "with the new tokens, are longer. The harness would cut them, and LUME scores whole texts only. "
        "Leave these rows out or, if the model can take them, raise max_length in --model_args of lm_eval."
    )
    raise_problems(faults, head, most=10)


def warn_of_other_arguments(lm: CachingLM, metadata: Mapping[str, Any]) -> None:
    """Warn if a ``--use_cache`` file holds answers that were written with other model arguments.

    The harness looks answers up by the request alone, so the first run with a file writes its backend and model
    arguments into it. ``lume-hf`` does not need this: its keys contain the model's fingerprint.
    """
    if getattr(lm.lm, "keys_its_answers", False):
        return
    arguments = {"backend": type(lm.lm).__name__, "pretrained": getattr(lm.lm, "pretrained", None)}
    arguments |= {k: v for k, v in metadata.items() if k not in _OTHER_ARGUMENTS and not k.startswith("lume_")}
    now = ", ".join(f"{name}={value}" for name, value in sorted(arguments.items()))
    if not len(lm.dbdict):
        lm.dbdict[_ARGUMENTS_KEY] = now
    before = lm.dbdict.get(_ARGUMENTS_KEY, "unknown arguments")
    if before != now:
        log.warning(
            "--use_cache: %s was written with %s, this run has %s. The harness would use the cached answers for this "
            "model too; use a separate file for each model.",
            *(lm.cache_db, before, now),
        )
