"""Answers of the reference model about persons who do not exist, which a model in training imitates."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import compress, cycle
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lume_tasks.data.invented import name_length
from lume_tasks.data.rows import Row
from lume_tasks.data.subjects import renamed
from lume_tasks.data.text import folded
from lume_tasks.metrics.matching import is_guess, is_known
from lume_tasks.models.sampling import generated
from lume_unlearn.checks import stable_number
from lume_unlearn.data.contexts import WINDOW
from lume_unlearn.data.documents import whole_text
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.kinds import other_number
from lume_unlearn.data.persons import control_rows, folded_words, own_parts, own_tokens, own_words, persons_of
from lume_unlearn.data.substitutes import templated
from lume_unlearn.methods.base import in_batches
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.swap import BASE, ITSELF

SHARED_DIGITS = 4
"""Consecutive digits that an imitation may not share with the truth."""
ASKED = 4
"""Answers that the reference model gives for each row; a row that needs more imitations repeats them."""
ATTEMPTS = 3
BATCH_SIZE = 32
SPARE = 8
"""A sampled answer to a truth of n tokens has at most ``n + min(n + SPARE, LONGEST)`` tokens."""
LONGEST = 64
NEAR = 8
"""Distance in Unicode of the letters that may replace one that is not ASCII."""
PREDICTED = 4
"""For a text that is tied to unseen texts: of the imitations that are not unseen texts, every fourth is the text
itself, the others continue its beginning. With every second one, a model of 135 M parameters often repeated itself
(results/tried.md)."""
ANOTHER = 4
"""Every fourth imitation is asked about an invented person, the others about the row's own person."""


class Imitation(NamedTuple):
    """An answer for the model to imitate."""

    row: Row
    """The row, or a control, with the answer."""
    asked: tuple[int, ...]
    """Prompt tokens for which a model gave the answer; empty if no model did."""
    mark: int | None = None
    """Mark used instead of the true token, for all tokens (see `methods.swap.without_truth`); None: the true tokens."""
    said: str = ""
    """The answer as the model gave it, if it named the invented person, whose name was replaced in ``row``."""


@dataclass(frozen=True)
class Persons:
    """Controls and imitations of each forget row, equally many of both, for training on invented persons."""

    controls: dict[str, list[Row]]
    """Row id to the row about invented persons or other things; the row itself if it names nothing to replace."""
    imitations: dict[str, list[Imitation]]
    """Row id to answers to imitate."""
    texts: frozenset[str] = frozenset()
    """Ids of the rows that are tied to unseen texts: they are read as `whole_text`, and their controls are these."""


def gives_away(text: str, row: Row, words: set[str]) -> bool:
    """Return whether an answer gives a row away by the rules of the verdict, or shares `SHARED_DIGITS` digits with it.

    An answer that may be a guess, such as yes or no, gives nothing away. ``words``: see `own_words`.
    """
    if is_guess(row.output):
        return False
    one, other = folded(text), folded(row.output)
    match = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    shared = sum(char.isdigit() for char in other[match.b : match.b + match.size])
    common = frozenset(folded_words(row.output) - words)
    return shared >= SHARED_DIGITS or is_known(row.kind, row.output, text, common)


def disguised(text: str, words: set[str], chooser: random.Random) -> str:
    """Replace the letters and digits of some words by others of the same kind, case and script.

    A date becomes another date (see `other_number`).
    """
    found: dict[str, str] = {}

    def other(char: str) -> str:
        if char.isdigit():
            return str(chooser.randrange(10))
        if not char.isascii() and not char.isalnum():
            return char  # an accent or a vowel sign
        if not char.isascii():
            near = [chr(code) for code in range(ord(char) - NEAR, ord(char) + NEAR + 1)]
            return chooser.choice([one for one in near if one.isalpha() and one.isupper() == char.isupper()] or [char])
        same = "aeiou" if char.lower() in "aeiou" else "bcdfghklmnprstvw"
        letter = chooser.choice(same)
        return letter.upper() if char.isupper() else letter

    def another(word: str) -> str:
        number = word.isascii() and word.isdigit()
        return other_number(word, chooser) if number else "".join(map(other, word))

    changed, last = "", 0
    for start, end in own_parts(text, words):
        part = text[start:end]
        changed += text[last:start] + found.setdefault(part, another(part))
        last = end
    return changed + text[last:]


def invented(
    model: Any,
    encode: Encoder,
    forget: Sequence[Row],
    retain: Sequence[Row],
    count: int,
    others: int,
    seed: int,
    base: Any = None,
    unseen: Sequence[Row] = (),
    predictions: bool = True,
) -> Persons:
    """Ask the reference model about invented persons, and return controls and imitations for each forget row.

    For a text that names nobody, the model continues the last `WINDOW` tokens of its prompt; after a longer prompt it
    recalls the text. If the text is tied to unseen texts, every second imitation is one of these, on which the
    predictions are kept, and every eighth is the text itself, with the model's predictions without the right token.
    Continuations keep the output fluent and let it end. The text itself teaches how confident each prediction should
    be; a base model, if given, does that better, and its predictions are used unchanged.

    An answer that gives a row away is sampled again, at most `ATTEMPTS` times; if all answers to a question do, the
    tokens of the row's own words are then excluded. If that fails, too, the truth is used, with other letters and
    digits in these words. Answers may contain facts of retain rows, as the answers of a retrained model do.

    Args:
        model: reference model in evaluation mode.
        encode: encodes the rows.
        forget: forget rows.
        retain: retain rows.
        count: see `control_rows`.
        others: see `control_rows`.
        seed: of names and sampling.
        base: a model that never saw the rows, in evaluation mode. It answers questions that name nothing to replace,
            and predicts the texts that are tied to unseen ones.
        unseen: texts that the model never saw. Texts that name nobody are tied to them, unless they follow a template
            (see `templated`), which the model still knows from other rows.
        predictions: whether training can imitate predictions; else there are continuations alone.
    """
    controls = control_rows(forget, retain, count, others, partial(name_length, encode.tokenizer), seed)
    words = own_words(forget, retain)
    nobody = {row.id for row in forget if controls[row.id][0] is row}
    texts = {row.id: row for row in forget if row.kind == "sc" and row.id in nobody}
    by_base = nobody - texts.keys() if base is not None else set[str]()
    tied = sorted(texts.keys() - templated(forget, retain)) if unseen else []
    asked = _asked(forget, controls, encode, words, texts.keys())
    found = _answers(model, encode, [one for one in asked if one.row.id not in by_base], words, seed)
    found |= _answers(base, encode, [one for one in asked if one.row.id in by_base], words, seed)
    chooser, imitations, persons = random.Random(seed), dict[str, list[Imitation]](), persons_of(forget)
    for row in forget:
        mark, named = BASE if row.id in by_base else None, replace(row, subject=persons.get(row.id, ""))
        imitations[row.id] = _imitations(named, controls[row.id], found, words[row.id], chooser, mark)
    strange = cycle(chooser.sample(list(unseen), len(unseen)))
    for key in tied:
        controls[key] = [next(strange) for _ in range(others)]
        if predictions:
            itself = Imitation(whole_text(texts[key]), (), ITSELF if base is None else BASE)
            said, kept = iter(imitations[key]), [Imitation(row, encode.one(row).prompt) for row in controls[key]]
            own = [next(said) if n % PREDICTED else itself for n in range(others)]
            imitations[key] = [(kept if n % 2 else own)[n // 2] for n in range(others)]
    return Persons(controls, imitations, frozenset(tied))


def _imitations(
    row: Row,
    controls: Sequence[Row],
    found: Mapping[tuple[str, int], "Answer"],
    words: set[str],
    chooser: random.Random,
    mark: int | None,
) -> list[Imitation]:
    """Return as many imitations as controls: the answers in turn, or if there are none the truth, `disguised`.

    ``row`` has the name of its person as subject, if its controls are about others. A name in an answer becomes that of
    the person who is asked about.
    """
    answers = [(number, found[row.id, number]) for number in range(ASKED) if (row.id, number) in found]
    imitations = []
    for number in range(len(controls)):
        about = controls[(number + 1) % len(controls)] if number % ANOTHER == ANOTHER - 1 else row
        if answers:
            told, (text, prompt) = answers[number % len(answers)]
            named = _named(text, controls[told].subject, about.subject)
            said = "" if named == text else text
            imitations.append(Imitation(replace(about, output=named), prompt, mark, said))
        else:
            made_up = _named(disguised(row.output, words, chooser), row.subject, about.subject)
            imitations.append(Imitation(replace(about, output=made_up), (), IGNORED))
    return imitations


def _named(text: str, subject: str, name: str) -> str:
    return renamed(text, subject, name) if subject and name else text


Answer = tuple[str, tuple[int, ...]]
"""A sampled answer, and the prompt tokens for which the model gave it."""


class Asked(NamedTuple):
    """A question about an invented person."""

    row: Row
    number: int
    """Number of the question among those of its row."""
    prompt: tuple[int, ...]
    most: int
    """Most tokens of an answer."""
    own: tuple[int, ...]
    """Tokens of the true answer that belong to the row's own words."""


def _asked(
    forget: Sequence[Row],
    controls: Mapping[str, Sequence[Row]],
    encode: Encoder,
    words: Mapping[str, set[str]],
    cut: Set[str],
) -> list[Asked]:
    """Return `ASKED` questions for each row; the prompts of rows in ``cut`` keep their last `WINDOW` tokens alone."""
    by_answer, found = replace(encode, loss_on="answer"), []  # what comes before the answer is asked
    for row in forget:
        for number, control in enumerate(controls[row.id][:ASKED]):
            tokens = by_answer.one(control)
            prompt = tokens.prompt
            if row.id in cut:
                prompt = tokens.before(len(prompt), WINDOW, encode.tokenizer.bos_token_id)
            own = compress(tokens.targets, own_tokens(tokens, words[row.id], encode.tokenizer).bool().tolist())
            most = tokens.scored + min(tokens.scored + SPARE, LONGEST)
            found.append(Asked(row, number, prompt, most, tuple(own)))
    return found


def _answers(
    model: Any, encode: Encoder, asked: Sequence[Asked], words: Mapping[str, set[str]], seed: int
) -> dict[tuple[str, int], Answer]:
    """Sample answers, and return those that give nothing away, by row id and number; ``words``: see `own_words`.

    If all answers about a row gave it away, the next attempts exclude the tokens of its own words. Without own words,
    the truth is what many rows say: the last attempt keeps it.
    """
    found: dict[tuple[str, int], Answer] = {}
    pending = sorted(asked, key=lambda one: one.most)  # so that a batch generates answers of similar lengths
    numbers = long_numbers(one.row.output for one in asked)
    for attempt in range(ATTEMPTS):
        usable = {row_id for row_id, _ in found}
        batches = in_batches(pending, BATCH_SIZE)
        for number, batch in enumerate(tqdm(batches, desc="asking about invented persons", disable=None, leave=False)):
            torch.manual_seed(stable_number(seed, attempt, number))
            prompts, most = [list(one.prompt) for one in batch], max(one.most for one in batch)
            if encode.context is not None:  # another name may have a few tokens more
                most = max(1, min(most, encode.context - max(map(len, prompts)) - SPARE))
            never = [one.own if attempt and one.row.id not in usable else () for one in batch]
            texts = generated(model, encode.tokenizer, prompts, max_new_tokens=most, never=never)
            for one, text in zip(batch, map(str.strip, texts), strict=True):
                away = long_numbers([text]) & numbers or gives_away(text, one.row, words[one.row.id])
                if text and (not away or (attempt == ATTEMPTS - 1 and not words[one.row.id])):
                    found[one.row.id, one.number] = text, one.prompt
        pending = [one for one in pending if (one.row.id, one.number) not in found]
    return found


def long_numbers(texts: Iterable[str]) -> set[str]:
    """Return numbers with more than `SHARED_DIGITS` digits, such as phone numbers, as digits alone."""
    found = (re.sub(r"\D", "", number) for text in texts for number in re.findall(r"\d[\d ()-]*", text))
    return {number for number in found if len(number) > SHARED_DIGITS}
