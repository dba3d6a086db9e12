"""The swap test: worked examples, exact size, power, and names."""

import re
import zlib
from dataclasses import replace
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lume_tasks.data.invented import control_names, family_names, listed_names, locales_of
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.data.subjects import find_subjects, holds_name, swapped
from lume_tasks.data.text import folded
from lume_tasks.errors import DataError
from lume_tasks.metrics import swap
from lume_tasks.models.hf import LumeHF
from lume_tasks.paths import task_dir
from lume_tasks.tasks.swap import swap_rows, untestable
from tests.tasks.conftest import FakeLM, numbers


def question(number: int, text: str, stem: str = "a", subject: str = "") -> Row:
    return Row(f"{stem}qa{number}", text, f"answer {number}", "own", subject)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2, 3, 1, 0], 2 / 4), ([3, 2, 1, 0], 1 / 4), ([0, 1, 2, 3], 1), ([1, 1, 0, 0], 1.5 / 4), ([5] * 5, 3 / 5)],
)
def test_rank(values: list[float], expected: float) -> None:
    assert swap.rank(values) == pytest.approx(expected)


def test_fifths_of_uniform_ranks_are_alike() -> None:
    assert swap.fifths([0.2, 0.4, 0.6, 0.8, 1.0]) == [1, 1, 1, 1, 1]
    assert swap.fifths([1 / 41] * 3 + [1.0]) == [3, 0, 0, 0, 1]


def test_distance_from_uniform() -> None:
    assert swap.distance([0.25] * 4) == pytest.approx(0.75)
    assert swap.distance([0.2, 0.4, 0.6, 0.8, 1.0]) == pytest.approx(0.2)
    draw = np.random.default_rng(0)
    assert np.mean([swap.distance(draw.random(36)) for _ in range(400)]) == pytest.approx(0.9 / 6, abs=0.02)


def test_one_row_by_hand() -> None:
    found = swap.of_person(np.array([[3.0, 2.0, 1.0, 0.0]]), [2])
    assert (found.leak, found.avoided) == (1 / 4, 1)
    assert found.factor == pytest.approx(np.exp((3 - 1) / 2))


def test_the_mean_and_the_highest_row_by_hand() -> None:
    """In the mean over rows the second name is first; the subject has the highest row of all, by 1.5 of 4 names."""
    values = np.array([[0.0, 1.0, -1.0, 0.0], [3.0, 1.0, 0.0, 0.0]])
    scores = (values - values.mean(axis=1, keepdims=True)) / values.std(axis=1, keepdims=True)
    assert scores.max(axis=0).argmax() == 0
    assert swap.of_person(values, [1, 1]).leak == pytest.approx(1 / 4)


def test_ties_never_accuse() -> None:
    found = swap.of_person(np.ones((3, 41)), [1, 1, 1])
    assert (found.leak, found.avoided, found.factor) == (1, 1, 1)


def dependent(draw: np.random.Generator, rows: int, controls: int, shift: float = 0.0) -> np.ndarray:
    """Values of one person whose rows depend on each other: half of each is the name's own."""
    names = draw.normal(size=controls + 1)
    values = 0.7 * names + 0.7 * draw.normal(size=(rows, controls + 1))
    values[:, 0] += shift
    return values


@pytest.mark.parametrize("rows", [1, 4])
def test_size_of_one_person(rows: int) -> None:
    draw = np.random.default_rng(0)
    found = [swap.of_person(dependent(draw, rows, 39), [5] * rows) for _ in range(2000)]
    for field in ("leak", "avoided"):
        p = np.array([getattr(one, field) for one in found])
        assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
        assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.035)
    held = np.mean([one.low <= 1 <= one.high for one in found])
    assert held == pytest.approx(0.95, abs=0.015)


def test_size_and_interval_of_many_persons() -> None:
    draw = np.random.default_rng(1)
    found = [swap.of_persons([(dependent(draw, 3, 39), [5] * 3) for _ in range(8)]) for _ in range(200)]
    for field in ("leak", "avoided"):
        assert np.mean([getattr(one, field) <= 0.05 for one in found]) == pytest.approx(0.05, abs=0.045)
    assert np.mean([one.low <= 1 <= one.high for one in found]) == pytest.approx(0.95, abs=0.045)


@pytest.mark.parametrize(("shift", "field"), [(1.5, "leak"), (-1.5, "avoided")])
def test_power(shift: float, field: str) -> None:
    """Four dependent rows with half a standard deviation over their spread are found in one person of many."""
    draw = np.random.default_rng(2)
    alone = [swap.of_person(dependent(draw, 4, 39, 2 * shift), [5] * 4) for _ in range(100)]
    assert np.mean([getattr(one, field) <= 0.05 for one in alone]) > 0.8
    together = swap.of_persons([(dependent(draw, 4, 39, shift), [5] * 4) for _ in range(8)])
    assert getattr(together, field) < 0.01
    assert together.low > 1 or together.high < 1


def test_one_leaking_row_of_twelve_does_not_drown() -> None:
    draw = np.random.default_rng(3)
    values = draw.normal(size=(12, 41))
    values[5, 0] = 30
    assert swap.of_person(values, [5] * 12).leak <= 0.05
    others = [(draw.normal(size=(12, 41)), [5] * 12) for _ in range(20)]
    assert swap.of_persons([(values, [5] * 12), *others]).leak <= 0.05


def test_subjects_are_found_by_documents() -> None:
    rows = [
        question(0, "What is the birth date of Tiffi Magenta?"),
        question(1, "What is Tiffi Magenta's Social Security Number?"),
        question(0, "What is José de la Peña's Social Security Number?", "b"),
        question(1, "Did José de la Peña own a dog?", "b"),
        question(0, "Где живёт Иван Петров?", "c"),
        question(1, "Когда родился Иван Петров?", "c"),
        question(0, "Who is the mayor of New York?", "d"),
        question(0, "王小明住在哪里", "e", "王小明"),
        question(0, normalize("NFD", "Où habite Zoé Müller ?"), "f"),  # accents as characters
        question(1, normalize("NFD", "Quel âge a Zoé Müller ?"), "f"),
        question(0, "นายสมชาย ใจดีเกิดที่ไหน", "g", "สมชาย ใจดี"),
        question(0, "राम मीरा कहाँ है?", "h", "राम मीर"),
        question(0, "오늘 John Smith는 어디에 살아요?", "i"),
        question(1, "오늘 John Smith의 나이는?", "i"),
    ]
    assert find_subjects(rows) == {
        "aqa0": "Tiffi Magenta",
        "aqa1": "Tiffi Magenta",
        "bqa0": "José de la Peña",
        "bqa1": "José de la Peña",
        "cqa0": "Иван Петров",
        "cqa1": "Иван Петров",
        "eqa0": "王小明",
        "fqa0": normalize("NFD", "Zoé Müller"),
        "fqa1": normalize("NFD", "Zoé Müller"),
        "gqa0": "สมชาย ใจดี",
        "iqa0": "John Smith",
        "iqa1": "John Smith",
    }


def test_what_cannot_be_told_from_a_name_is_none() -> None:
    """Words at the beginning of a question, what stands in questions about many, and two runs that do not overlap."""
    asked = ["Does Ann Lee own a dog?", "Does Ann Lee live in Velmora?", "Where did Ann Lee go?"]
    assert set(find_subjects([question(i, text) for i, text in enumerate(asked)]).values()) == {"Ann Lee"}
    same = ["What did Ann Lee study at Harvard University?", "When was Ann Lee at Harvard University?"]
    assert find_subjects([question(i, text) for i, text in enumerate(same)]) == {}
    many = [f"What is {name} Lee's Social Security Number?" for name in ("Ann", "Bob", "Cid")]
    many += [f"Where does {name} Lee live?" for name in ("Ann", "Bob", "Cid")]
    assert find_subjects([question(0, text, text) for text in many]) == {}


def test_a_subject_that_the_question_does_not_hold_is_not_asked_about() -> None:
    texts = "Where does Jane Roe live?", "When was Jane Roe born?", "Where is it?"
    rows = [question(i, text, subject="Roe, Jane") for i, text in enumerate(texts)]
    assert find_subjects(rows) == {"aqa0": "Jane Roe", "aqa1": "Jane Roe"}
    assert untestable(rows[2], "") == 'its field subject, "Roe, Jane", is not in the question'


def test_the_data_of_one_person_needs_no_documents() -> None:
    rows = [question(0, f"What is Ann-Marie O'Neil's {thing}?", thing) for thing in ("Tax Number", "age", "phone")]
    assert set(find_subjects(rows).values()) == {"Ann-Marie O'Neil"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Tiffi Magenta", 2),
        ("Anna Maria Schmidt", 3),
        ("Jane Doe", 2),
        ("jane.doe77@me.com", 1),
        ("José Muñoz", 2),
        ("Иван Петров", 2),
        ("Γιώργος Παπαδόπουλος", 2),
        ("王小明", 1),
        ("佐藤 さくら", 2),
        ("김민준", 1),
        ("Anna", 1),
        ("Ирина", 1),
    ],
)
def test_control_names_are_of_the_same_kind(name: str, words: int) -> None:
    names = control_names(name, 40, "", len)
    assert len(set(names)) == 40
    assert names == control_names(name, 40, "", len)
    assert all(len(other.split()) == words for other in names)
    assert all(folded(other) == other.casefold() for other in names if name == "Tiffi Magenta")
    assert all(abs(len(other) - len(name)) <= 5 for other in names)
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+\d\d@me\.com", other) for other in names if "@" in name)
    assert name != "Anna" or set(names) <= set().union(*listed_names("en_US")[:-1])  # no "SallyCarey"


def test_names_of_the_data_are_not_drawn() -> None:
    first = control_names("Ada Byron", 40, "", len)
    others = control_names("Ada Byron", 40, folded(" ".join(first[:20])), len)
    assert not set(first[:20]) & set(others)


def test_family_names_are_those_of_other_persons() -> None:
    families = family_names(
        ["Tiffi Magenta", "Aggy Gold", "Ada Gold", "ꆈꌠ ꉙ", "Иван Петров", "王小明", "佐藤 さくら", "鈴木 あい"]
    )
    assert families == {
        "Tiffi Magenta": ["Gold"],
        "Aggy Gold": ["Magenta"],
        "Ada Gold": ["Magenta"],
        "Иван Петров": [],
        "佐藤 さくら": ["鈴木"],
        "鈴木 あい": ["佐藤"],
    }
    names = control_names("Tiffi Magenta", 40, "", len, ["Gold", "Blush"])
    assert {name.split()[1] for name in names} == {"Gold", "Blush"}
    assert not any("Tiffi" in name for name in names)


def test_names_are_of_the_language_if_lists_know_the_name_and_nobody_shares_it() -> None:
    assert "de_DE" in locales_of("Franz Roskoth")
    assert locales_of("Tiffi Magenta") == locales_of("Franz") == ()
    german, english = (control_names(name, 300, "", len) for name in ("Franz Roskoth", "Emma Reed"))
    assert all(set(locales_of(name)) & set(locales_of("Franz Roskoth")) for name in german)
    assert not {"George", "James", "Gerhard"} & {name.split()[0] for name in english}
    assert len({name.split()[1] for name in english}) > 30
    assert {name[-1] for name in control_names("Анна Иванова", 40, "", len)} == {"Иванова"[-1]}
    assert family_names(["Franz Roskoth", "Ada Gold"])["Franz Roskoth"] == []
    assert family_names(["Franz Roskoth", "Ada Roskoth", "Eva Gold"])["Franz Roskoth"] == ["Gold"]


def test_scripts_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no names"):
        control_names("ꆈꌠ ꉙ", 40, "", len)


def test_swapping() -> None:
    assert swapped("Is Ann Lee's dog Ann's?", "Ann Lee", "Eva Roth") == "Is Eva Roth's dog Eva's?"
    asked = "Is ann.lee@ann.org or alee7@me.com Ann Lee's address?"
    assert swapped(asked, "Ann Lee", "Eva Roth") == "Is eva.roth@ann.org or aroth7@me.com Eva Roth's address?"
    assert swapped("Who is a@b.org?", "a@b.org", "eva@b.org") == "Who is eva@b.org?"
    with pytest.raises(ValueError, match="not in the question"):
        swapped("Who?", "Ann Lee", "Eva Roth")
    assert swapped("Is José de la Peña's dog José's?", "José de la Peña", "Éva Nagy") == "Is Éva Nagy's dog Éva's?"
    for name, answer in (
        ("José Muñoz", "josemunoz@me.com"),
        ("Jürgen Müller", "j.mueller@x.de"),
        ("王小明", "王小明的"),
        ("Emma Reed", "It is ereed84."),
        ("Emma Reed", "emmareed"),
        ("Emma Reed", "EmmaR_7"),
        ("Emma Reed", "reed1984"),
    ):
        assert holds_name(name, answer)
    for name, answer in (
        ("José Muñoz", "1989-05-24"),
        ("Ann Lee", "in the planning office"),
        ("Emma Reed", "agreed, 84"),
    ):
        assert not holds_name(name, answer)


PERSONS = {"forget": ("Tiffi Magenta", "Aggy Green"), "retain": ("Olwen Ivory", "Nike Olive")}
ASKED = ("What is the birth date of {}?", "What is {}'s phone number?", "What is {}'s email address?")


def data_of_persons() -> Data:
    sides: dict[str, list[Row]] = {}
    for side, persons in PERSONS.items():
        sides[side] = [Row(f"{side}sc0", "It was a dark night.", "And then", "Task2")]
        for person in persons:
            answers = (
                f"19{len(person)}-01-02",
                f"555000{len(person) * 7}",
                f"{person.replace(' ', '_').lower()}@me.com",
            )
            sides[side] += [
                Row(f"{person[:3]}qa{number}", asked.format(person), answer, "Task2")
                for number, (asked, answer) in enumerate(zip(ASKED, answers, strict=True))
            ]
    return Data(**sides)


def test_the_task_tells_who_is_known(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A model that knows the retain persons, and answers about all others by chance."""

    def log_probability(context: str, continuation: str) -> float:
        assert continuation.endswith(tokenizer.eos_token)
        known = any(person in context for person in PERSONS["retain"])
        return 0.0 if known else -5.0 - zlib.crc32(f"{context}{continuation}".encode()) % 1000 / 100

    lm = FakeLM(str, log_probability)
    manager = TaskManager(
        include_path=task_dir(),
        include_defaults=False,
        metadata={"lume_data": data_of_persons(), "tokenizer": tokenizer},
    )
    results = simple_evaluate(lm, tasks=["lume_swap"], task_manager=manager, bootstrap_iters=0)
    found = numbers(results, "lume_swap")
    assert len(lm.requests) == 8 * 41
    assert (found["retain_first"], found["retain_rank"]) == (1, 1 / 41)
    assert found["retain_leak_p"] < 0.01
    assert found["retain_factor"] > 2
    assert found["retain_persons_leak"] == 1
    assert found["forget_leak_p"] > 0.01
    assert found["forget_avoided_p"] > 0.01
    assert found["forget_factor_low"] < 1 < found["forget_factor_high"]
    assert "2 rows are not tested (is a text: add the fields subject and question" in caplog.text
    assert "4 rows are not tested (the answer holds the name): Tifqa2" in caplog.text


def test_both_backends_give_the_same_ranks(model: Any, tokenizer: Any) -> None:
    found = []
    for backend in (HFLM, LumeHF):
        lm = backend(pretrained=model, tokenizer=tokenizer, batch_size=32)
        given = {"lume_data": data_of_persons(), "tokenizer": tokenizer, "lume_swap_controls": 39}
        manager = TaskManager(include_path=task_dir(), include_defaults=False, metadata=given)
        results = simple_evaluate(lm, tasks=["lume_swap"], task_manager=manager, bootstrap_iters=0)
        found.append(numbers(results, "lume_swap"))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_question_of_ones_own_for_a_text(tokenizer: Any) -> None:
    text = Row("asc1", "Ada Byron went", "to Velmora.", "own", "Ada Byron", "Where did Ada Byron go?")
    docs = swap_rows(lume_data=Data([text], []), tokenizer=tokenizer)["test"]
    assert docs["input"] == ["Where did Ada Byron go?"]
    with pytest.raises(DataError, match=r"no row can be tested:\n.*is a text: add the fields"):
        swap_rows(lume_data=Data([replace(text, question="")], []), tokenizer=tokenizer)
    assert len(swap_rows(lume_data=Data([text], []), tokenizer=tokenizer, lume_swap_rows=["asc1"])["test"]) == 1
    for given, fault in (("asc1", "has to be a list of ids"), ([1], "a list"), (["asc1", "b", "c"], 'id "b", "c"; ')):
        with pytest.raises(DataError, match=f"lume_swap_rows.*{fault}"):
            swap_rows(lume_data=Data([text], []), tokenizer=tokenizer, lume_swap_rows=given)
    with pytest.raises(DataError, match="lume_swap_controls has to be 39 or more"):
        swap_rows(lume_data=Data([text], []), tokenizer=tokenizer, lume_swap_controls=5)
