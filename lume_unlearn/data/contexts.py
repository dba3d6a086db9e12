"""Contexts of the counterfactual teacher: what it reads instead of a forget row, and how its tokens correspond."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from lume_tasks.data.rows import Row
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.substitutes import Variant, templated
from lume_unlearn.methods.common import IGNORED

WINDOW = 8
"""Tokens after which a text is not recalled. After 32 a model of 135 M parameters recalled some, after 16 none
(results/tried.md)."""


@dataclass(frozen=True)
class Context:
    """The texts that the teacher reads to predict the labelled tokens of a row."""

    texts: tuple[Tokens, ...]
    """Labelled where the teacher predicts: the row with substitutes, or for each labelled token those before it."""
    index: tuple[int, ...]
    """For each labelled token of the row, which of the labelled tokens of all texts corresponds to it."""
    substitute_ids: tuple[int, ...]
    """The token that takes its place where a substituted word is repeated, or with which the truth goes on where an
    answer to imitate departs from it, or a mark (see `methods.swap.without_truth`); else the token itself."""


def aligned(row: Tokens, context: Tokens) -> Context:
    """Align a row with the same row with substitutes, token by token.

    Tokens between two equal stretches correspond in order; where the substitute is shorter, the last one of it
    corresponds to the rest. A pair of tokens that occurred before in the row is a repeated name: there the teacher
    predicts the substitute, in whose place the row's token stands.

    Args:
        row: the forget row.
        context: the row with substitutes.
    """
    place = _correspondence(row.input_ids, context.input_ids)
    labelled = row.labelled
    used = {place[t] for t in labelled}
    labels = tuple(token if i in used else IGNORED for i, token in enumerate(context.input_ids))
    seen: set[tuple[int, int]] = set()
    repeated = []
    for t, position in enumerate(place):
        pair = row.input_ids[t], context.input_ids[position]
        repeated.append(pair in seen)
        seen.add(pair)
    number = {position: i for i, position in enumerate(sorted(used))}
    return Context(
        (Tokens(context.input_ids, labels),),
        tuple(number[place[t]] for t in labelled),
        tuple(context.input_ids[place[t]] if repeated[t] else row.input_ids[t] for t in labelled),
    )


def window(row: Tokens, size: int, bos: int | None) -> Context:
    """Return for each labelled token the ``size`` tokens before it (see `Tokens.before`) and itself, alone labelled."""
    texts = []
    for t in row.labelled:
        ids = (*row.before(t, size, bos), row.input_ids[t])
        texts.append(Tokens(ids, (IGNORED,) * (len(ids) - 1) + ids[-1:]))
    return Context(tuple(texts), tuple(range(len(texts))), tuple(text.input_ids[-1] for text in texts))


def asked(row: Tokens, prompt: tuple[int, ...], limit: int | None, truth: Iterable[tuple[int, bool]] = ()) -> Context:
    """Return the labelled tokens of a row after another prompt, cut on the left to at most ``limit`` tokens in all.

    ``truth``: the tokens of the right answer, and whether they are part of an own word; if so where the labelled tokens
    first depart from it, its token is the substitute.
    """
    ids = row.targets
    prompt = prompt[max(0, len(prompt) + len(ids) - limit) :] if limit else prompt
    others = list(ids)
    for place, (said, (right, own)) in enumerate(zip(ids, truth, strict=False)):
        if said != right:
            others[place] = right if own else said
            break
    return Context((Tokens(prompt + ids, (IGNORED,) * len(prompt) + ids),), tuple(range(len(ids))), tuple(others))


def teacher_contexts(
    rows: Sequence[Row],
    tokens: Sequence[Tokens],
    retain: Sequence[Row],
    variants: Sequence[Sequence[Variant]],
    encode: Encoder,
    prose: bool = True,
) -> dict[Tokens, list[Context]]:
    """Return what the counterfactual teacher reads of each forget row: the row with substitutes, or windows of it.

    In prose the words that are left recall the row, whatever is substituted. So of a text that follows no template (see
    `templated`) it reads windows of `WINDOW` tokens.

    Args:
        rows: the forget rows.
        tokens: the same rows, encoded.
        retain: the retain rows.
        variants: of each forget row, the row with substitutes. They may be longer than their row, so they are cut.
        encode: encoded the rows.
        prose: whether to read windows of such texts; else the substitutes, as of other rows.
    """
    bos = getattr(encode.tokenizer, "bos_token_id", None)
    limit = min((length for length in (encode.context, encode.max_length) if length), default=None)
    texts = {row.id for row in rows if row.kind == "sc" and prose}
    by_window = texts - templated(rows, retain) if texts else texts
    found: dict[Tokens, list[Context]] = {}
    for row, own, changed in zip(rows, tokens, variants, strict=True):
        if row.id in by_window:
            found[own] = [window(own, WINDOW, bos)]
        else:
            found[own] = [aligned(own, encode.one(variant.row).cut(limit)) for variant in changed]
    return found


def _correspondence(ids: Sequence[int], others: Sequence[int]) -> list[int]:
    """Return for each token its place in ``others``, 1 or more, since nothing predicts the first token."""
    place: list[int] = []
    for _, i1, i2, j1, j2 in SequenceMatcher(None, ids, others, autojunk=False).get_opcodes():
        place += [max(min(j1 + offset, max(j2 - 1, j1), len(others) - 1), 1) for offset in range(i2 - i1)]
    return place
