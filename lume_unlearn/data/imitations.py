"""What the reference model says of persons who do not exist, for a model in training to imitate."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lume_tasks.data.rows import Row
from lume_tasks.data.text import folded
from lume_tasks.metrics.matching import is_guess, is_known
from lume_tasks.models.sampling import generated
from lume_unlearn.checks import stable_number
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.persons import control_rows, own_words, words_of
from lume_unlearn.data.substitutes import templated
from lume_unlearn.methods.base import in_batches

SHARED_DIGITS = 4
"""Digits in a row that an imitation may not share with the truth."""
ASKED = 4
"""Answers that the reference model gives to each row; a row that is used more often has each several times."""
ATTEMPTS = 3
BATCH_SIZE = 32
SPARE = 8
"""New tokens of an answer beyond twice those of the truth, which are at most `LONGEST` more."""
LONGEST = 64
NEAR = 8
"""Distance in Unicode of the letters that take the place of one that is not ASCII."""
WINDOW = 8
"""Last tokens of the prompt of a text that names nobody, which the reference model continues. After 32 a model of 135 M
parameters recalled some texts, after 16 none (RESULTS.md, "What was tried")."""
ANOTHER = 4
"""Each this many imitations is asked about an invented person, the others about the row's own."""


class Imitation(NamedTuple):
    """An answer for the model to imitate."""

    row: Row
    """The row, or a control, with the answer."""
    asked: tuple[int, ...]
    """The tokens after which the reference model said it; empty if it did not."""
    made_up: set[str]
    """Words of the answer, folded, that the reference model did not say."""


@dataclass(frozen=True)
class Persons:
    """What a training on invented persons reads beside the forget rows, of each forget row equally many of both."""

    controls: dict[str, list[Row]]
    """Row id to the row about invented persons; the row itself where it names nobody."""
    imitations: dict[str, list[Imitation]]
    """Row id to answers to imitate, as many as controls."""
    texts: frozenset[str] = frozenset()
    """Ids of the rows that are read as `whole_text`, and whose controls are texts that the model never saw."""


def names_and_numbers(retain: Sequence[Row]) -> set[str]:
    """Return the names and numbers in the answers of retain rows: `own_words` with a capital letter or a digit."""
    return {
        folded(word)
        for row, own in zip(retain, own_words(retain, retain).values(), strict=True)
        for word in re.findall(r"\w+", row.output)
        if folded(word) in own and (word[0].isupper() or any(map(str.isdigit, word)))
    }


def gives_away(text: str, row: Row, words: set[str]) -> bool:
    """Return whether a verdict would say that an answer gives a row away, or it shares four digits in a row with it.

    An answer that may be a guess, such as yes and no, gives nothing away. ``words``: the row's own.
    """
    if is_guess(row.output):
        return False
    one, other = folded(text), folded(row.output)
    match = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    shared = sum(char.isdigit() for char in other[match.b : match.b + match.size])
    common = frozenset(words_of(row.output) - words)
    return shared >= SHARED_DIGITS or is_known(row.kind, row.output, text, common)


def disguised(text: str, words: set[str], chooser: random.Random) -> str:
    """Return a text in which the letters and digits of some words are others, of the same kind, case and script.

    A number of two digits becomes another one up to 12, and a year keeps its century, so that a date remains one.
    """
    found: dict[str, str] = {}

    def other(char: str) -> str:
        if char.isdigit():
            return str(chooser.randrange(10))
        if not char.isascii():
            near = [chr(code) for code in range(ord(char) - NEAR, ord(char) + NEAR + 1)]
            return chooser.choice([one for one in near if one.isalpha() and one.isupper() == char.isupper()] or [char])
        same = "aeiou" if char.lower() in "aeiou" else "bcdfghklmnprstvw"
        letter = chooser.choice(same)
        return letter.upper() if char.isupper() else letter

    def another(word: str) -> str:
        if re.fullmatch("[0-9]{2}", word):
            return chooser.choice([two for two in (f"{number:02}" for number in range(1, 13)) if two != word])
        kept = 2 if re.fullmatch("(19|20)[0-9]{2}", word) else 0
        return word[:kept] + "".join(map(other, word[kept:]))

    def changed(match: re.Match[str]) -> str:
        if folded(match[0]) not in words:
            return match[0]
        return found.setdefault(match[0], another(match[0]))

    return re.sub(r"\w+", changed, text)


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
) -> Persons:
    """Ask a model about invented persons, and return the rows of a training that imitates its answers.

    A text that names nobody, which the model would recall, is continued from its last tokens alone (`WINDOW`).

    An answer that gives the truth away is sampled again, `ATTEMPTS` times at most; then it is the truth with other
    letters and digits in its own words. In the others, names and numbers of retain rows get other letters and digits,
    since a model that remembers other persons tells their facts of anybody.

    Args:
        model: reference model in evaluation mode.
        encode: encodes the rows.
        forget: forget rows.
        retain: retain rows.
        count: invented persons for each forget row that names somebody.
        others: answers to imitate for each forget row that names nobody.
        seed: of names and sampling.
        base: model that never saw the rows, in evaluation mode; it is asked about rows that name nobody.
        unseen: texts that the model never saw: the controls of the texts that name nobody, unless they follow a
            template (see `templated`), which the model still knows from other rows.
    """
    controls = control_rows(forget, retain, count, others, partial(_length, encode.tokenizer), seed)
    words = own_words(forget, retain)
    nobody = {row.id for row in forget if controls[row.id][0] is row}
    by_base = nobody if base is not None else set()
    asked = [Asked(row, number, one) for row in forget for number, one in enumerate(controls[row.id][:ASKED])]
    found = _answers(model, encode, [one for one in asked if one.row.id not in by_base], words, seed, WINDOW)
    of_base = _answers(base, encode, [one for one in asked if one.row.id in by_base], words, seed)
    found |= {key: answer._replace(asked=()) for key, answer in of_base.items()}  # the model did not say these
    chooser, strangers = random.Random(seed), names_and_numbers(retain)
    imitations = {
        row.id: _imitations(row, controls[row.id], found, words[row.id], strangers, chooser) for row in forget
    }
    if not unseen:
        return Persons(controls, imitations)
    texts = {row.id for row in forget if row.kind == "sc" and row.id in nobody} - templated(forget, retain)
    strange = cycle(chooser.sample(list(unseen), len(unseen)))
    controls |= {row_id: [next(strange) for _ in range(others)] for row_id in sorted(texts)}
    return Persons(controls, imitations, frozenset(texts))


def _imitations(
    row: Row,
    controls: Sequence[Row],
    found: Mapping[tuple[str, int], "Answer"],
    words: set[str],
    strangers: set[str],
    chooser: random.Random,
) -> list[Imitation]:
    """Return as many answers of one row as it has controls, disguised.

    ``words``: the row's own; ``strangers``: names and numbers of retain rows.
    """
    imitations = []
    for number in range(len(controls)):
        about = controls[(number + 1) % len(controls)] if number % ANOTHER == ANOTHER - 1 else row
        answer = found.get((row.id, number % ASKED))
        told, facts = (answer.text, strangers) if answer else (row.output, words)
        text, prompt = disguised(told, facts, chooser), answer.asked if answer else ()
        made_up = words_of(text) - (words_of(told) if prompt else set())
        imitations.append(Imitation(replace(about, output=text), prompt, made_up))
    return imitations


class Answer(NamedTuple):
    """What a model said after the tokens ``asked``."""

    text: str
    asked: tuple[int, ...]


class Asked(NamedTuple):
    """A question about an invented person: ``control`` is the row about it, the row's ``number``-th."""

    row: Row
    number: int
    control: Row


def _answers(
    model: Any, encode: Encoder, asked: Sequence[Asked], words: Mapping[str, set[str]], seed: int, window: int = 0
) -> dict[tuple[str, int], Answer]:
    """Return usable answers by row id and number; ``words``: own words of each row.

    ``window``: tokens of the prompt of a text that names nobody, the last ones; 0 for all.

    A row whose answers all gave the truth away is not asked again: a memorised text would be repeated each time.
    """
    found: dict[tuple[str, int], Answer] = {}
    pending = []
    by_answer = replace(encode, loss_on="answer")  # what comes before it is asked
    for one in asked:
        tokens = by_answer.one(one.control)
        most = tokens.scored + min(tokens.scored + SPARE, LONGEST)
        end, size = tokens.labelled[0], window if one.control is one.row and one.row.kind == "sc" else 0
        prompt = tokens.before(end, size or end, encode.tokenizer.bos_token_id)
        pending.append((one, prompt, most))
    pending.sort(key=lambda item: item[2])  # so that a batch generates answers of similar lengths
    for attempt in range(ATTEMPTS):
        batches = in_batches(pending, BATCH_SIZE)
        for number, batch in enumerate(tqdm(batches, desc="asking about invented persons", disable=None, leave=False)):
            torch.manual_seed(stable_number(seed, attempt, number))
            prompts, most = [list(prompt) for _, prompt, _ in batch], max(most for *_, most in batch)
            texts = generated(model, encode.tokenizer, prompts, max_new_tokens=most)
            for (one, prompt, _), text in zip(batch, texts, strict=True):
                if text.strip() and not gives_away(text, one.row, words[one.row.id]):
                    found[one.row.id, one.number] = Answer(text.strip(), prompt)
        usable = {row_id for row_id, _ in found}
        again = {one for one, *_ in pending if one.row.id in usable and (one.row.id, one.number) not in found}
        pending = [item for item in pending if item[0] in again]
    return found


def _length(tokenizer: Any, name: str) -> int:
    return len(tokenizer.encode(f" {name}"))
