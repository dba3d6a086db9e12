"""What the counterfactual teacher reads of the forget rows, and what a run tells of it."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lume_tasks.data.rows import Row
from lume_unlearn.data.contexts import Context, teacher_contexts
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.examples import Examples
from lume_unlearn.data.substitutes import Variant, variants
from lume_unlearn.files import write_text, writing

_log = logging.getLogger("lume_unlearn")


def teacher_inputs(
    method: Any,
    encode: Encoder,
    forget: Sequence[Row],
    retain: Sequence[Row],
    tokens: Sequence[Tokens],
    substitutes: Mapping[str, Sequence[str]] | None,
    seed: int,
) -> tuple[list[list[Variant]], dict[Tokens, list[Context]]]:
    """Return each forget row with substitutes, and what the teacher reads of it.

    Args:
        method: its fields ``contexts`` and ``window`` say how much.
        encode: encodes rows.
        forget: forget rows.
        retain: retain rows, from which substitutes come, too.
        tokens: the forget rows, encoded.
        substitutes: texts and what may take their place; None: those of other rows.
        seed: of the choice.
    """
    found = variants(forget, retain, method.contexts, seed, substitutes)
    bos = getattr(encode.tokenizer, "bos_token_id", None)
    limit = min((length for length in (encode.context, encode.max_length) if length), default=None)
    start = [] if bos is None else [bos]
    return found, teacher_contexts(forget, tokens, retain, found, encode.one, method.window, start, limit)


def write_substitutes(output: Path, forget: Sequence[Row], found: Sequence[Sequence[Variant]]) -> None:
    """Write ``substitutes.jsonl``, for the user to see: the words of each forget row and their substitutes."""
    pairs = list(zip(forget, found, strict=True))
    lines = [json.dumps({"id": row.id, "contexts": [v.words for v in own]}, ensure_ascii=False) for row, own in pairs]
    with writing(output):
        write_text(output / "substitutes.jsonl", "\n".join(lines) + "\n")
    unchanged = [row.id for row, own in pairs if not any(variant.words for variant in own)]
    if unchanged:
        text = "%d of %d forget rows have nothing to substitute, so the teacher knows them; the first is %s"
        _log.warning(text, len(unchanged), len(pairs), unchanged[0])


def print_level(window: int, examples: Examples, contexts: Mapping[Tokens, Sequence[Context]]) -> None:
    """Print the teacher's NLL of the forget rows; texts of the same kind never seen should have about the same."""
    nlls = examples.reference.values()
    level = float(torch.stack([nll.mean() for nll in nlls]).mean())
    cut = sum(len(own[0].texts) > 1 for own in contexts.values())
    windows = f" ({cut} of them prose, from the last {window} tokens)" if cut else ""
    print(f"the teacher's NLL of {len(nlls)} forget rows is {level:.3f} nats a token{windows}", flush=True)
