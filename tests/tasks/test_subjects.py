"""Whom a question is about: companies, questions with a part of the name, and names in scripts with vowel signs."""

import re
from typing import Any
from unicodedata import normalize

import pytest

from lume_tasks.data.invented import control_names, family_names, listed_names
from lume_tasks.data.source import Data
from lume_tasks.data.subjects import find_subjects, holds, holds_name, renamed, swapped
from lume_tasks.tasks.swap import swap_rows
from tests.tasks.test_swap import question


def test_a_company_is_no_person() -> None:
    texts = (
        "What does Ada Gold earn at Acme GmbH?",
        "Since when is Ada Gold at Acme GmbH & Co. KG?",
        "Is Orange S.A. ours?",
    )
    rows = [question(i, text) for i, text in enumerate([*texts, "Where is Orange S.A.?", "What is Acme GmbH's plan?"])]
    assert find_subjects(rows) == {"aqa0": "Ada Gold", "aqa1": "Ada Gold"}
    assert family_names(["Acme GmbH", "Ada Gold", "Eva Roth"], always=True) == {
        "Ada Gold": ["Roth"],
        "Eva Roth": ["Gold"],
    }


@pytest.mark.parametrize("form", ["GmbH", "Inc.", "S.A.", "GmbH & Co. KG"])
def test_a_company_as_subject_is_compared_with_companies(form: str) -> None:
    names = control_names(f"Acme Works {form}", 40, "", len, ["Gold"])
    assert all(re.fullmatch(rf"\w+ \w+ {form}", name) for name in names)
    assert set(control_names(f"Acme {form}", 40, "", len)[0].split()[:1]) <= listed_names("en_US")[-1]
    asked = swapped(f"Who owns Acme Works {form}, is it Acme?", f"Acme Works {form}", names[0])
    assert asked == f"Who owns {names[0]}, is it {names[0].split()[0]}?"
    assert not holds_name(f"Acme {form}", f"Works {form}")
    titled = control_names(f"Dr. Acme {form}", 4, "", len)
    assert all(re.fullmatch(rf"Dr\. \w+ {form}", name) for name in titled)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("What is Emma's plan?", "What is Olga's plan?"),
        ("Emma's plan?", "Olga's plan?"),
        ("Wie lautet Emmas Adresse?", "Wie lautet Olgas Adresse?"),
        ("Where do the Reeds live?", "Where do the Roths live?"),
        ("Is emma reed's order late?", "Is olga roth's order late?"),
        ("Is EMMA REED here?", "Is OLGA ROTH here?"),
        ("Emma Reed, or Reed?", "Olga Roth, or Roth?"),
    ],
)
def test_a_part_of_the_subject_or_other_capitals_name_it(asked: str, expected: str) -> None:
    row = question(0, asked, subject="Emma Reed")
    assert find_subjects([row]) == {"aqa0": "Emma Reed"}
    assert swapped(asked, "Emma Reed", "Olga Roth") == expected


@pytest.mark.parametrize(
    ("asked", "subject", "expected"),
    [
        ("Where does Sean O\u2019Brien live?", "Sean O'Brien", "Where does Olga Roth live?"),
        ("Wo wohnt Anna Mueller?", "Anna Müller", "Wo wohnt Olga Roth?"),
        ("Wo wohnt Anna Müller?", "Anna Mueller", "Wo wohnt Olga Roth?"),
        (normalize("NFD", "Wo wohnt Frau Müller?"), "Anna Müller", "Wo wohnt Frau Roth?"),
        ("Wo wohnt Anna\u2011Lena Reed?", "Anna-Lena Reed", "Wo wohnt Olga Roth?"),
        ("Where was J.K. Rowling born?", "J. K. Rowling", "Where was A. B. Roth born?"),
    ],
)
def test_a_name_is_replaced_as_a_whole_in_the_spelling_of_another_system(
    asked: str, subject: str, expected: str
) -> None:
    name = "A. B. Roth" if "K." in subject else "Olga Roth"
    assert find_subjects([question(0, asked, subject=subject)]) == {"aqa0": subject}
    assert swapped(asked, subject, name) == expected


def test_initials_without_spaces_belong_to_the_name() -> None:
    rows = [question(number, f"{word} did J.R.R. Tolkien live?") for number, word in enumerate(("Where", "When"))]
    assert set(find_subjects(rows).values()) == {"J.R.R. Tolkien"}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("ANNA SMITH", r"[^a-z]+ [^a-z]+"),
        ("anna smith", r"[^A-Z]+ [^A-Z]+"),
        ("Mr. Smith", r"Mr\. [^ ]+"),
        ("Dr. Anna Smith", r"Dr\. [^ ]+ [^ ]+"),
        ("Rob Lane jr.", r"[^ .]+ [^ .]+"),
    ],
)
def test_control_names_are_written_like_the_name(name: str, pattern: str) -> None:
    families = family_names([name, "Karl Weber sen.", "Eva Wood", "tom hill"], always=True)[name]
    assert families == ["Hill", "Weber", "Wood"]
    for names in (control_names(name, 20, "", len, families), control_names(name, 20, "", len)):
        assert all(re.fullmatch(pattern, other) for other in names)


def test_invented_persons_differ_in_the_part_of_the_name_that_a_question_has(tokenizer: Any) -> None:
    rows = [question(0, "Where is Tom?", subject="Tom Hill"), question(1, "Who is Mr Hill?", subject="Tom Hill")]
    rows += [question(0, "Where is Uma?", "b", "Uma Quorn"), question(0, "Who is Ms Ivory?", "c", "Ada Ivory")]
    found = swap_rows(lume_data=Data(rows, []), tokenizer=tokenizer)
    assert {doc["id"]: len({*doc["prompts"]}) for doc in found["test"]} == {"aqa0": 41, "aqa1": 41, "bqa0": 41}
    (left_out,) = found["left_out"]  # the invented persons are called Hill and Quorn
    assert (left_out["id"], "a part of the name that invented persons share" in left_out["reason"]) == ("cqa0", True)


@pytest.mark.parametrize(
    "asked", ["Will it come?", "When will the Young arrive?", "Is Dr. Reed in?", "Where is Youngstown?"]
)
def test_other_words_do_not_name_the_subject(asked: str) -> None:
    assert find_subjects([question(0, asked, subject="Dr. Will Lee-Young")]) == {}


def test_small_words_of_a_name_are_not_replaced_on_their_own() -> None:
    names, asked = ("María de los Ángeles Ruiz", "Ana Bea Roth"), "¿Cuáles son los teléfonos de María?"
    assert swapped(asked, *names) == "¿Cuáles son los teléfonos de Ana?"
    assert not holds("¿Cuáles son los horarios?", names[0])
    assert renamed("Welchen Vertrag hat Peter und Klaus?", "Peter und Klaus", "Max Jan") == (
        "Welchen Vertrag hat Max Jan?"
    )
    rows = [question(i, text) for i, text in enumerate(["Wo wohnt Jan van den Berg?", "Wann kam Jan van den Berg?"])]
    assert {*find_subjects(rows).values()} == {"Jan van den Berg"}


def test_a_name_of_one_word_is_no_part_of_a_longer_word() -> None:
    assert swapped("Was hat Jan im Januar bestellt?", "Jan", "Pam") == "Was hat Pam im Januar bestellt?"
    assert swapped("Wo wohnt Bo? Bos Haus", "Bo", "Al") == "Wo wohnt Al? Als Haus"
    assert not holds("Was war im Januar?", "Jan")
    assert swapped("Где дом Ивана?", "Иван", "Олег") == "Где дом Олега?"


@pytest.mark.parametrize("answer", ["Montana", "mañana a las 10"])
def test_a_part_of_a_word_is_no_name(answer: str) -> None:
    assert not holds_name("Ana Muñoz", answer)
    assert holds_name("Ана Рот", "Спросите Анатолия")  # perhaps with an ending


@pytest.mark.parametrize(
    ("text", "subject", "name", "expected"),
    [
        ("मीरा आई। राम मीर", "राम मीर", "मोहन दास", "मीरा आई। मोहन दास"),
        ("মীরা এল, শ্রী মীর রায়", "মীর রায়", "রবি সেন", "মীরা এল, শ্রী রবি সেন"),
        ("คุณสมชายเกิดที่ไหน", "สมชาย ใจดี", "วิชัย มีสุข", "คุณวิชัยเกิดที่ไหน"),
        ("John Smith는", "John Smith", "Eva Roth", "Eva Roth는"),
        ("Smith는", "John Smith", "Eva Roth", "Roth는"),
        ("王小明的邮箱是a@x.org", "王小明", "李四光", "李四光的邮箱是a@x.org"),
    ],
)
def test_names_are_replaced_as_whole_words_of_their_script(text: str, subject: str, name: str, expected: str) -> None:
    assert renamed(text, subject, name) == expected
    assert holds("John Smith는 어디에 살아요?", "John Smith")
