"""Turns whole documents into log-likelihood requests that give the benchmark's loss exactly, on any backend.

The benchmark's loss of a document is the mean of -log p(token t | tokens before t) over tokens 2..n, with nothing put
before the first token (a causal LM called with ``labels = input_ids``). The harness always needs a context. Where the
tokenizer puts a BOS in front, token 1 is that BOS and an empty context makes the harness condition on exactly it. Where
it does not, an empty context would condition on a BOS or EOS that the benchmark never shows the model; there the
context is the text of the first token.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError

# Model arguments of the harness that decide which tokenizer is loaded and how, and their names in transformers.
_TOKENIZER_ARGS = {
    "revision": "revision",
    "subfolder": "subfolder",
    "use_fast_tokenizer": "use_fast",
    "add_bos_token": "add_bos_token",
    "gguf_file": "gguf_file",
    "trust_remote_code": "trust_remote_code",
}
_LONGEST_TOKEN = 128  # characters; no first token of a text is longer


def load_tokenizer(metadata: Mapping[str, Any]) -> Any:
    """The tokenizer of the model under evaluation, from what the harness tells a data function.

    Args:
        metadata: the model arguments and ``--metadata`` merged. ``tokenizer`` wins over ``pretrained`` (a name, a
            folder or a model object) and ``model`` (the API backends); each may already be an object.

    Raises:
        DataError: none of them is there (an LM object was passed), or the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    source = metadata.get("tokenizer") or metadata.get("pretrained") or metadata.get("model")
    if source is None:
        raise DataError(
            "LUME needs the model's tokenizer to count tokens, and the model arguments name none. Pass a name, a "
            "folder or the tokenizer itself as metadata:\n"
            '  --metadata \'{"tokenizer": "NAME_OR_FOLDER"}\' on the command line,\n'
            '  simple_evaluate(..., metadata={"tokenizer": ...}) with an LM object,\n'
            '  TaskManager(metadata={"tokenizer": ...}) with a task manager of your own.'
        )
    if not isinstance(source, str):
        if callable(getattr(source, "encode", None)):
            return source
        source = str(getattr(source, "name_or_path", source))
    kwargs = {new: metadata[old] for old, new in _TOKENIZER_ARGS.items() if metadata.get(old) is not None}
    if metadata.get("tokenizer"):
        kwargs.pop("gguf_file", None)  # holds the model's own tokenizer, which this one replaces
    try:
        return AutoTokenizer.from_pretrained(source, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"LUME could not load the tokenizer {source!r}: {error}\n"
            'Name another one with --metadata \'{"tokenizer": "NAME_OR_FOLDER"}\'.'
        ) from error


def split_document(tokenizer: Any, document: str) -> tuple[str, str, int]:
    """Split a document into (context, continuation, number of scored tokens) for one ``loglikelihood`` request.

    The sum of log-probabilities of the continuation divided by the number of scored tokens is minus the benchmark's
    loss, for tokenizers with and without BOS.

    Raises:
        ValueError: no such split exists; the message says why, without naming the document.
    """
    ids = tokenizer.encode(document)
    if len(ids) < 2:
        raise ValueError("it has fewer than two tokens, so there is nothing to predict")
    plain = tokenizer.encode(document, add_special_tokens=False)
    if tokenizer.bos_token_id is not None and ids == [tokenizer.bos_token_id, *plain]:
        if plain[0] == tokenizer.bos_token_id:
            raise ValueError("it starts with the text of the tokenizer's BOS, which the harness would not score")
        return "", document, len(plain)
    if ids != plain:
        raise ValueError("the tokenizer adds special tokens other than a BOS, which the harness would not score alike")
    for end in range(1, min(len(document), _LONGEST_TOKEN) + 1):
        context = document[:end]
        # The harness moves white space at the end of a context into the continuation.
        if context == context.rstrip() and tokenizer.encode(context) == ids[:1]:
            return context, document[end:], len(ids) - 1
    raise ValueError("its first token is white space or part of a character, which the harness cannot use as a context")


def mia_requests(tokenizer: Any, documents: Mapping[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """Requests for all documents of each class.

    Args:
        tokenizer: of the model under evaluation.
        documents: class name ("member", "nonmember") to texts.

    Returns:
        class name to ``{"context", "continuation", "scored_tokens", "member", "number"}`` in the given order;
        ``number`` counts from 1, as lines of the file do.

    Raises:
        DataError: names every document that cannot be scored exactly.
    """
    requests: dict[str, list[dict[str, Any]]] = {name: [] for name in documents}
    faults = []
    for name, texts in documents.items():
        for number, text in enumerate(texts, 1):
            try:
                context, continuation, scored = split_document(tokenizer, text)
            except ValueError as error:
                faults.append(f"  {name} document {number}: {error}")
                continue
            requests[name].append(
                {
                    "context": context,
                    "continuation": continuation,
                    "scored_tokens": scored,
                    "member": name == "member",
                    "number": number,
                }
            )
    if faults:
        raise DataError("\n".join(["lume_mia cannot score these documents exactly with this tokenizer:", *faults]))
    return requests


def members_among(members: Sequence[str], rows: Iterable[Row]) -> int:
    """Count the member documents that are the text of a sentence-completion (``sc``) row."""
    texts = completion_texts(rows)
    return sum(document.strip() in texts for document in members)


def completion_texts(rows: Iterable[Row]) -> set[str]:
    """The texts of the ``sc`` rows: ``input``, a space, ``output``, without white space at the ends."""
    return {f"{row.input} {row.output}".strip() for row in rows if row.kind == "sc"}
