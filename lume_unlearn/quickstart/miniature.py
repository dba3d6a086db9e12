"""A miniature LUME of the package's own making: three tasks, MIA documents and an MMLU-like set, drawn from a seed.

All people, places and numbers are invented. Names, places and the other telling words are drawn without replacement, so
that nothing in the forget rows can be learned from the retain rows. The layout is that of a LUME data directory.
"""

import datetime
import itertools
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lume_unlearn.quickstart import words

STORIES = 8
PERSONS = 5
MAKERS = 12
QUESTIONS_PER_SUBJECT = 20

Pools = dict[str, list[str]]
Puzzle = tuple[str, str, list[str]]


@dataclass(frozen=True)
class Document:
    """One invented text, cut in two, with questions and answers about it."""

    kind: str
    task: str
    beginning: str
    ending: str
    questions: list[tuple[str, str]]


def write_miniature(directory: Path, seed: int = 0) -> None:
    """Write a miniature LUME data directory.

    Makes ``forget.jsonl`` and ``retain.jsonl`` (70 rows each: 8 stories and 12 encyclopaedia entries, one ``sc`` and
    one ``qa`` row each, 5 persons with one ``sc`` and five ``qa`` rows each), ``mia_data/member.jsonl`` and
    ``mia_data/nonmember.jsonl`` (12 documents each; members are the entries of the forget set, title line included) and
    ``mmlu/<subject>/test-00000-of-00001.parquet`` (3 subjects, 20 questions each).

    Args:
        directory: where to write; made if missing. Files of the same names are replaced.
        seed: the same seed gives the same texts on every machine, another seed gives other people.
    """
    rng = random.Random(seed)
    pools = _shuffled_pools(rng)
    stories = [_story(rng, pools) for _ in range(2 * STORIES)]
    persons = [_person(rng, pools) for _ in range(2 * PERSONS)]
    makers = [_maker(rng, pools) for _ in range(3 * MAKERS)]
    forget = stories[:STORIES] + persons[:PERSONS] + makers[:MAKERS]
    retain = stories[STORIES:] + persons[PERSONS:] + makers[MAKERS : 2 * MAKERS]

    (directory / "mia_data").mkdir(parents=True, exist_ok=True)
    _write_jsonl(directory / "forget.jsonl", _rows(forget, first_number=0))
    _write_jsonl(directory / "retain.jsonl", _rows(retain, first_number=len(forget)))
    _write_jsonl(directory / "mia_data" / "member.jsonl", _whole(makers[:MAKERS]))
    _write_jsonl(directory / "mia_data" / "nonmember.jsonl", _whole(makers[2 * MAKERS :]))
    for subject, make in (("arithmetic", _arithmetic), ("number_order", _number_order), ("opposites", _opposites)):
        _write_subject(directory / "mmlu" / subject, subject, _questions(rng, make))


def _shuffled_pools(rng: random.Random) -> Pools:
    """Every pool in a random order; taking from the end draws without replacement."""
    pairs = {
        "first": (words.FIRST_STEMS, "", words.FIRST_ENDS),
        "last": (words.LAST_STEMS, "", words.LAST_ENDS),
        "town": (words.TOWN_STEMS, "", words.TOWN_ENDS),
        "title": (words.TITLE_STEMS, " ", words.TITLE_ENDS),
        "prize": (words.PRIZE_STEMS, " ", words.PRIZE_ENDS),
        "hoard": (words.HOARD_STEMS, " ", words.HOARD_ENDS),
        "landmark": (words.LANDMARK_STEMS, " ", words.LANDMARK_ENDS),
        "nickname": (words.NICKNAME_STEMS, "", words.NICKNAME_ENDS),
        "street": (words.STREET_STEMS, " ", words.STREET_ENDS),
    }
    pools = {key: [a + gap + b for a, b in itertools.product(left, right)] for key, (left, gap, right) in pairs.items()}
    pools |= {
        "trade": list(words.TRADES),
        "object": list(words.OBJECTS),
        "spot": list(words.SPOTS),
        "creature": list(words.CREATURES),
        "treat": list(words.TREATS),
        "resolve": list(words.RESOLVES),
    }
    for pool in pools.values():
        rng.shuffle(pool)
    return pools


def _story(rng: random.Random, pools: Pools) -> Document:
    drawn = ("town", "trade", "object", "spot", "landmark", "creature", "treat", "resolve")
    facts = {key: pools[key].pop() for key in drawn}
    facts |= {"hero": pools["first"].pop(), "friend": pools["first"].pop(), "count": str(rng.randint(12, 99))}
    ending = [rng.choice(words.STORY_TURNS), rng.choice(words.STORY_ENDS)]
    questions = [rng.choice(words.STORY_QUESTIONS)]
    return _document("story", "Task1", rng.choice(words.STORY_BEGINNINGS), ending, questions, facts)


def _person(rng: random.Random, pools: Pools) -> Document:
    born = _birthday(rng)
    # 900-999 was never issued as a Social Security number; groups up to 49 stay clear of other numbers of that shape.
    ssn = f"{rng.randint(900, 999)}-{rng.randint(1, 49):02}-{rng.randint(1, 9999):04}"
    # 555-0100 to 555-0199 and example.org are set aside for fiction.
    phone = f"{rng.randint(201, 999)}-555-01{rng.randint(0, 99):02}"
    facts = {
        "name": _name(pools),
        "trade": pools["trade"].pop(),
        "town": pools["town"].pop(),
        "born": _spelled(born),
        "born_iso": born.isoformat(),
        "ssn": ssn,
        "ssn_digits": ssn.replace("-", ""),
        "phone": phone,
        "phone_digits": phone.replace("-", ""),
        "email": f"{pools['nickname'].pop()}{rng.randint(10, 99)}@example.org",
        "address": f"{rng.randint(10, 990)} {pools['street'].pop()}, {pools['town'].pop()} {rng.randint(10000, 99999)}",
    }
    fields = [rng.choice(words.PERSON_FIELDS[key]) for key in rng.sample(list(words.PERSON_FIELDS), 4)]
    beginning = f"{rng.choice(words.PERSON_BEGINNINGS)} {fields[0]}"
    return _document("person", "Task2", beginning, fields[1:], words.PERSON_QUESTIONS, facts)


def _maker(rng: random.Random, pools: Pools) -> Document:
    name = _name(pools)
    born = _birthday(rng)
    facts = {
        "name": name,
        "last": name.split()[-1],
        "maker": rng.choice(words.MAKERS),
        "born": _spelled(born),
        "town": pools["town"].pop(),
        "place": pools["town"].pop(),
        "count": str(rng.randint(4, 14)),
        "teacher": _name(pools),
        "work": f'"The {pools["title"].pop()}"',
        "prize": f"{pools['prize'].pop()} Prize",
        "year": str(born.year + rng.randint(24, 36)),
        "hoard": pools["hoard"].pop(),
    }
    ending = [rng.choice(words.MAKER_CAREERS), rng.choice(words.MAKER_ENDS)]
    questions = [rng.choice(words.MAKER_QUESTIONS)]
    return _document("entry", "Task3", rng.choice(words.MAKER_BEGINNINGS), ending, questions, facts)


def _document(
    kind: str,
    task: str,
    beginning: str,
    ending: list[str],
    questions: list[tuple[str, str]],
    facts: Mapping[str, str],
) -> Document:
    """Fill the frames with the facts."""
    filled = [(question.format_map(facts), answer.format_map(facts)) for question, answer in questions]
    return Document(kind, task, beginning.format_map(facts), " ".join(ending).format_map(facts), filled)


def _name(pools: Pools) -> str:
    return f"{pools['first'].pop()} {pools['last'].pop()}"


def _birthday(rng: random.Random) -> datetime.date:
    return datetime.date(1931, 1, 1) + datetime.timedelta(days=rng.randrange(59 * 365))


def _spelled(day: datetime.date) -> str:
    return f"{day.day} {words.MONTHS[day.month - 1]} {day.year}"


def _rows(documents: Iterable[Document], first_number: int) -> Iterable[dict[str, str]]:
    for number, document in enumerate(documents, first_number):
        pairs = [("sc1", document.beginning, document.ending)]
        pairs += [(f"qa{index}", question, answer) for index, (question, answer) in enumerate(document.questions)]
        for suffix, text, output in pairs:
            yield {"id": f"{document.kind}-{number:02}{suffix}", "input": text, "output": output, "task": document.task}


def _whole(documents: Iterable[Document]) -> Iterable[dict[str, str]]:
    """Whole texts, exactly as the ``sc`` rows are memorised: beginning, one space, ending."""
    return ({"document": f"{document.beginning} {document.ending}"} for document in documents)


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def _questions(rng: random.Random, make: Callable[[random.Random], Puzzle]) -> list[dict[str, object]]:
    """Distinct questions whose right answers stand equally often at each of the four places."""
    puzzles: dict[str, tuple[str, list[str]]] = {}
    while len(puzzles) < QUESTIONS_PER_SUBJECT:
        question, right, wrong = make(rng)
        puzzles.setdefault(question, (right, wrong))
    places = [number % 4 for number in range(QUESTIONS_PER_SUBJECT)]
    rng.shuffle(places)
    return [
        {"question": question, "choices": [*wrong[:place], right, *wrong[place:]], "answer": place}
        for (question, (right, wrong)), place in zip(puzzles.items(), places, strict=True)
    ]


def _arithmetic(rng: random.Random) -> Puzzle:
    left, right = rng.randint(3, 60), rng.randint(3, 60)
    wrong = [str(left + right + shift) for shift in rng.sample([-3, -2, -1, 1, 2, 3, 10], 3)]
    return f"What is {left} plus {right}?", str(left + right), wrong


def _number_order(rng: random.Random) -> Puzzle:
    low = rng.randint(10, 80)
    high = low + rng.randint(3, 9)
    wrong = rng.sample([*range(1, low), *range(high + 1, 99)], 3)
    question = f"Which of these numbers is larger than {low} but smaller than {high}?"
    return question, str(rng.randint(low + 1, high - 1)), [str(number) for number in wrong]


def _opposites(rng: random.Random) -> Puzzle:
    chosen, *others = rng.sample([pair.split() for pair in words.OPPOSITES], 4)
    word, opposite = rng.sample(chosen, 2)
    return f"Which word means the opposite of {word}?", opposite, [rng.choice(pair) for pair in others]


def _write_subject(folder: Path, subject: str, questions: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = [
        ("question", pa.string()),
        ("subject", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.int64()),
    ]
    rows = [{**question, "subject": subject} for question in questions]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), folder / "test-00000-of-00001.parquet")
