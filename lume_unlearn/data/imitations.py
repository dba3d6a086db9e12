"""What the reference model says of persons who do not exist, for a model in training to imitate."""

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

from lume_tasks.data.rows import Row
from lume_tasks.data.text import folded
from lume_tasks.metrics.matching import is_guess, is_known
from lume_tasks.models.sampling import generated
from lume_unlearn.checks import stable_number
from lume_unlearn.data.contexts import WINDOW
from lume_unlearn.data.documents import whole_text
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.kinds import other_number
from lume_unlearn.data.persons import control_rows, own_tokens, own_words, words_of
from lume_unlearn.data.substitutes import templated
from lume_unlearn.methods.base import in_batches
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.swap import BASE, ITSELF

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
PREDICTED = 4
"""Of a text that is compared with unseen ones, every fourth imitation that is none of these is the text itself, and the
others continue it. With every second one a model of 135 M parameters often wrote in loops (results/tried.md)."""
ANOTHER = 4
"""Each this many imitations is asked about an invented person, the others about the row's own."""


class Imitation(NamedTuple):
    """An answer for the model to imitate."""

    row: Row
    """The row, or a control, with the answer."""
    asked: tuple[int, ...]
    """The tokens after which a model said it; empty if none did."""
    mark: int | None = None
    """What stands in place of the truth at all of its tokens (see `methods.swap.without_truth`); None: the truth."""


@dataclass(frozen=True)
class Persons:
    """What a training on invented persons reads beside the forget rows, of each forget row equally many of both."""

    controls: dict[str, list[Row]]
    """Row id to the row about invented persons or other things; the row itself where it names nothing."""
    imitations: dict[str, list[Imitation]]
    """Row id to answers to imitate, as many as controls."""
    texts: frozenset[str] = frozenset()
    """Ids of the rows that are read as `whole_text`, and whose controls are texts that the model never saw."""


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

    Of a date a date remains (see `other_number`).
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
        number = word.isascii() and word.isdigit()
        return other_number(word, chooser) if number else "".join(map(other, word))

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
    predictions: bool = True,
) -> Persons:
    """Ask a model about invented persons, and return the rows of a training that imitates its answers.

    A text that names nobody is continued from its last tokens alone (`WINDOW`), since after more of them the model
    recalls it. If it is compared with unseen texts, every second imitation is one of these, whose predictions are to
    stay, and every eighth the text itself, with what the model predicts at each place without the right token. The
    continuations keep what it writes a language, and let it end; the text itself tells how sure of each token it is to
    be, which a base model, if given, tells better, right tokens included.

    An answer that gives a row away is sampled again, `ATTEMPTS` times at most, and if all answers to a question do,
    without the tokens of the truth's own words. If that does not help, it is the truth with other letters and digits in
    these. Answers may hold facts of retain rows, as those of a retrained model do, which remembers other persons and
    tells their facts of anybody.

    Args:
        model: reference model in evaluation mode.
        encode: encodes the rows.
        forget: forget rows.
        retain: retain rows.
        count: see `control_rows`.
        others: see `control_rows`.
        seed: of names and sampling.
        base: model that never saw the rows, in evaluation mode; it is asked questions that name nothing, and predicts
            texts that are compared with unseen ones.
        unseen: texts that the model never saw: the controls of the texts that name nobody, unless they follow a
            template (see `templated`), which the model still knows from other rows.
        predictions: whether predictions can be imitated, not answers alone; else every text is continued.
    """
    controls = control_rows(forget, retain, count, others, partial(_length, encode.tokenizer), seed)
    words = own_words(forget, retain)
    nobody = {row.id for row in forget if controls[row.id][0] is row}
    texts = {row.id: row for row in forget if row.kind == "sc" and row.id in nobody}
    by_base = nobody - texts.keys() if base is not None else set[str]()
    tied = sorted(texts.keys() - templated(forget, retain)) if unseen else []
    asked = _asked(forget, controls, encode, words, texts.keys())
    found = _answers(model, encode.tokenizer, [one for one in asked if one.row.id not in by_base], words, seed)
    found |= _answers(base, encode.tokenizer, [one for one in asked if one.row.id in by_base], words, seed)
    chooser, imitations = random.Random(seed), dict[str, list[Imitation]]()
    for row in forget:
        mark = BASE if row.id in by_base else None
        imitations[row.id] = _imitations(row, controls[row.id], found, words[row.id], chooser, mark)
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
    """Return as many answers of one row as it has controls, its truth with ``words`` disguised where there is none."""
    answers = [found[row.id, number] for number in range(ASKED) if (row.id, number) in found]
    imitations = []
    for number in range(len(controls)):
        about = controls[(number + 1) % len(controls)] if number % ANOTHER == ANOTHER - 1 else row
        if answers:
            text, prompt = answers[number % len(answers)]
            imitations.append(Imitation(replace(about, output=text), prompt, mark))
        else:
            made_up = disguised(row.output, words, chooser)
            imitations.append(Imitation(replace(about, output=made_up), (), IGNORED))
    return imitations


class Answer(NamedTuple):
    """What a model said after the tokens ``asked``."""

    text: str
    asked: tuple[int, ...]


class Asked(NamedTuple):
    """A question about an invented person."""

    row: Row
    number: int
    """Which of the row's it is."""
    prompt: tuple[int, ...]
    most: int
    """Tokens of an answer, at most."""
    own: tuple[int, ...]
    """Tokens of the truth's own words."""


def _asked(
    forget: Sequence[Row],
    controls: Mapping[str, Sequence[Row]],
    encode: Encoder,
    words: Mapping[str, set[str]],
    cut: Set[str],
) -> list[Asked]:
    """Return `ASKED` questions for each row; of rows whose ids are in ``cut``, the last tokens alone (`WINDOW`)."""
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
    model: Any, tokenizer: Any, asked: Sequence[Asked], words: Mapping[str, set[str]], seed: int
) -> dict[tuple[str, int], Answer]:
    """Return usable answers by row id and number; ``words``: own words of each row.

    A row whose answers all gave the truth away is asked again without the tokens of its own words.
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
            never = [one.own if attempt and one.row.id not in usable else () for one in batch]
            texts = generated(model, tokenizer, prompts, max_new_tokens=most, never=never)
            for one, text in zip(batch, map(str.strip, texts), strict=True):
                away = long_numbers([text]) & numbers or gives_away(text, one.row, words[one.row.id])
                if text and not away:
                    found[one.row.id, one.number] = Answer(text, one.prompt)
        pending = [one for one in pending if (one.row.id, one.number) not in found]
    return found


def long_numbers(texts: Iterable[str]) -> set[str]:
    """Return the numbers of more than `SHARED_DIGITS` digits, such as those of a telephone, as digits alone."""
    found = (re.sub(r"\D", "", number) for text in texts for number in re.findall(r"\d[\d ()-]*", text))
    return {number for number in found if len(number) > SHARED_DIGITS}


def _length(tokenizer: Any, name: str) -> int:
    return len(tokenizer.encode(f" {name}"))
