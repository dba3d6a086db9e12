"""Contexts of the counterfactual teacher: what it reads instead of a forget row, and how the tokens correspond."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from lume_tasks.data.rows import Row
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.substitutes import Variant, templated
from lume_unlearn.methods.common import IGNORED

WINDOW = 8
"""Tokens of context after which a model does not recall a text. A model of 135 M parameters recalled some texts after
32, none after 16 (results/tried.md)."""


@dataclass(frozen=True)
class Context:
    """The texts that the teacher reads to predict the labelled tokens of a row."""

    texts: tuple[Tokens, ...]
    """The row with substitutes, or for each labelled token of the row the few tokens before it; labelled where the
    teacher predicts."""
    index: tuple[int, ...]
    """For each labelled token of the row, the index of its counterpart among the labelled tokens of all texts."""
    substitute_ids: tuple[int, ...]
    """For each labelled token: its substitute if a substituted word is repeated there; the true token if an answer to
    imitate first differs from the truth there; or a mark (see `methods.swap.without_truth`); else the token itself."""


def aligned(row: Tokens, context: Tokens) -> Context:
    """Align a row with the same row with substitutes, token by token.

    Tokens between two equal stretches correspond in order; if the substitute is shorter, its last token corresponds to
    all that remain. A pair of tokens that occurred earlier in the row is a repeated name: there the probability of the
    substitute counts for the row's token.

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
    """Return a text for each labelled token: the ``size`` tokens before it (`Tokens.before`), and itself, labelled."""
    texts = []
    for t in row.labelled:
        ids = (*row.before(t, size, bos), row.input_ids[t])
        texts.append(Tokens(ids, (IGNORED,) * (len(ids) - 1) + ids[-1:]))
    return Context(tuple(texts), tuple(range(len(texts))), tuple(text.input_ids[-1] for text in texts))


def asked(row: Tokens, prompt: tuple[int, ...], limit: int | None, truth: Iterable[tuple[int, bool]] = ()) -> Context:
    """Return the labelled tokens of a row after another prompt, cut on the left to at most ``limit`` tokens in all.

    ``truth``: the tokens of the right answer, and whether each is part of an own word. Where the labelled tokens first
    differ from it, its token is the substitute if it is part of an own word.
    """
    ids = row.targets
    prompt = prompt[max(0, len(prompt) + len(ids) - limit) :] if limit else prompt
    others = list(ids)
    for place, (said, (right, own)) in enumerate(zip(ids, truth, strict=False)):
        if said != right:
            others[place] = right if own else said
            break
    return Context((Tokens(prompt + ids, (IGNORED,) * len(prompt) + ids),), tuple(range(len(ids))), tuple(others))


def reworded(row: Tokens, context: Context, said: Context) -> Context:
    """Return the context of an answer in which a name was replaced; the model reads the answer with the name it gave.

    Tokens that both answers share have the prediction there. All others have probability 1: the question names them.

    Args:
        row: the answer with the replaced name.
        context: its context, see `asked`.
        said: that of the answer as the model gave it.
    """
    index, marks = [0] * row.scored, [IGNORED] * row.scored
    matcher = SequenceMatcher(None, row.targets, said.texts[0].targets, autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        index[start : start + size] = range(other, other + size)
        marks[start : start + size] = context.substitute_ids[start : start + size]
    return Context(said.texts, tuple(index), tuple(marks))


def teacher_contexts(
    rows: Sequence[Row],
    tokens: Sequence[Tokens],
    retain: Sequence[Row],
    variants: Sequence[Sequence[Variant]],
    encode: Encoder,
    prose: bool = True,
) -> dict[Tokens, list[Context]]:
    """Return the counterfactual teacher's contexts of each forget row: the row with substitutes, or windows of it.

    In prose, the words that are not substituted are enough to recall the row. So if a text follows no template (see
    `templated`), the teacher reads windows of `WINDOW` tokens.

    Args:
        rows: the forget rows.
        tokens: the same rows, encoded.
        retain: the retain rows.
        variants: for each forget row, the row with substitutes, which is cut if it is too long for the model.
        encode: the encoder of the rows.
        prose: whether to use windows for such texts; else they have substitutes like other rows.
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
    """Return for each token its position in ``others``, at least 1, since nothing predicts the first token."""
    place: list[int] = []
    for _, i1, i2, j1, j2 in SequenceMatcher(None, ids, others, autojunk=False).get_opcodes():
        place += [max(min(j1 + offset, max(j2 - 1, j1), len(others) - 1), 1) for offset in range(i2 - i1)]
    return place
