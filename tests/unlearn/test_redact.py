"""Redacted texts: nothing that identifies a person, but enough to see what was asked and what leaked."""

import json
from typing import Any

import pytest

from lume_unlearn.report.redact import common_words, compare, tokens, worst_leaks
from lume_unlearn.report.redact import redacted as redact_all

COMMON = common_words((f"{i}sc0", "the baker lives in the old town") for i in range(3))


def redacted(text: str, shown: frozenset[str] = COMMON) -> str:
    return "".join(redact_all(tokens(text), shown))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is Ada Byron's Social Security Number?", "What is ••• •••'••• Social Security Number?"),
        ("900-51-4344", "•••-•••-•••"),
        ("born on March 10, 1951", "born on ••• •••, •••"),
        ("Write to ada.byron+x@mail.example.org.", "••• to •••@•••"),
        ("see https://ada.example/me now", "see ••• now"),
        ("the baker lives at 12b Old Lane, #505, OR", "the baker lives at ••• ••• •••, #•••, •••"),
        ("Does he live here? You told me.", "Does he live here? You ••• me."),
        ("A. Lovelace of IN, ME, May", "•••. ••• of •••, •••, •••"),  # an initial, states, a month
        ("tiffi the baker", "••• the baker"),  # a name in lower case is rare
        ("\u0430da", "•••"),  # a Cyrillic letter
        ("四郎", "•••"),  # a script without cases
        ("मीरा शर्मा", "••• •••"),  # vowel signs
        ("မြန်မာ தமிழ் ก็", "••• ••• •••"),
        ("\u093e", "•••"),
        ("\uff19\uff10\uff10 \U0001d7d7", "••• •••"),  # full-width and mathematical digits
        ("A\u200bda b\u00adaker", "••• baker"),  # invisible characters neither hide nor split
        ("\U0001f1e6\U0001f1e9 \u2801", "•••••• •••"),  # a flag, Braille
        ("@ ... \n\n- !", "@ ... \n\n- !"),
        (
            "Does Per An live here? Per you, Will Per.",
            "Does ••• ••• live here? Per you, ••• •••.",
        ),
    ],
)
def test_redaction(text, expected):
    assert redacted(text, COMMON | {"see", "now"}) == expected


def test_word_is_common_from_three_documents_on():
    twice = [("asc0", "violet"), ("aqa0", "violet"), ("bsc0", "violet")]
    assert "violet" not in common_words(twice)
    assert "violet" in common_words([*twice, ("csc0", "a violet")])
    assert "violet" not in common_words([*twice, ("csc0", "Violet violet@x.org violet7 https://violet")])


def test_words_of_a_forget_answer_are_never_common_but_for_those_of_its_question():
    retain = [(f"{person}sc0", "the baker has a cat in town") for person in "abcd"]
    forget = [("Is the cat here?", "The cat is with the Baker")]
    assert {"cat", "town", "the"} <= common_words(retain, forget)
    assert "baker" not in common_words(retain, forget)
    assert "violet" not in common_words([("asc0", "violet")], [(f"a violet {number}", "no") for number in range(5)])


def test_shared_words_are_marked_and_compared_before_redaction():
    truth, answer = compare("Ada, 900-51-4344, the end", "Eve, 900-51-4345, the end!", COMMON)
    assert truth == [("•••", False), (", •••-•••-", True), ("•••", False), (", the •••", True)]
    assert answer == [("•••", False), (", •••-•••-", True), ("•••", False), (", the •••", True), ("!", False)]


def sample(number: int, metric: str, score: float | None, output: str = "truth") -> dict[str, Any]:
    scores = {"forget_regurgitation": None, "forget_knowledge": None} | {metric: score}
    doc = {"id": f"d{number}sc0", "input": "in", "output": output}
    return {"doc_id": number, "doc": doc, "filtered_resps": ["out"], **scores}


def test_worst_leaks_come_first_and_retain_rows_not_at_all():
    text, facts = "forget_regurgitation", "forget_knowledge"
    samples = {
        "lume_task1": [sample(0, text, 0.2), sample(1, text, 0.9), sample(2, text, 0.0), sample(3, facts, 1.0)],
        "lume_task2": [sample(0, facts, 1.0, "much longer"), sample(1, facts, 0.0), sample(2, "retain_knowledge", 1.0)],
    }
    leaks = worst_leaks(samples, 5, show_pii=False)
    assert [(leak.task[-1], leak.kind, leak.number, leak.score) for leak in leaks] == [
        ("1", "sc", 1, 0.9),
        ("1", "sc", 0, 0.2),
        ("2", "qa", 0, 1.0),
        ("1", "qa", 3, 1.0),
    ]
    assert [leak.number for leak in worst_leaks(samples, 1, show_pii=False)] == [1, 0]


def test_forget_rows_of_a_report_count_as_one_document():
    samples = {"lume_rows": [sample(number, "forget_knowledge", 1.0, "violet") for number in range(5)]}
    for one in samples["lume_rows"]:
        one["doc"]["input"] = "orange"
    (leak, *_) = worst_leaks(samples, 5, show_pii=False)
    assert (leak.prompt, leak.truth) == ("•••", [("•••", False)])


def test_nothing_of_a_real_person_is_shown(lume_data):
    lines = [line for side in ("forget", "retain") for line in (lume_data / f"{side}.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    shown = common_words((row["id"], f"{row['input']} {row['output']}") for row in rows)
    answers = [row["output"] for row in rows if row["task"] == "Task2" and row["id"][-3:-1] == "qa"]
    assert answers
    kept = {token for answer in answers for token in tokens(redacted(answer, shown)) if any(map(str.isalnum, token))}
    assert kept <= {"The", "the", "of", "to"}
