"""Changed prompts: what they ask, of which rows, and whom the answers are judged for."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from lume_tasks.data.published import documents_digest
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.tasks.base import side_rows
from lume_unlearn.audit.prompts import (
    FORMS,
    PREFIX,
    PROMPTS,
    Asked,
    asks_the_same,
    in_own_words,
    multiple_choice,
    prompts_of,
    rewriting,
)
from lume_unlearn.audit.rows import about_earlier, fitting, rows_digest
from lume_unlearn.data.encode import Encoder
from tests.conftest import make_model

PEOPLE = {"forget": ["Ada Stone"], "retain": ["Ben Moor", "Cleo Rye", "Dan Fox"]}
FIELDS = {
    "When was {} born?": "19{0}0-01-02",
    "What is the phone number of {}?": "555-123-45{0}",
    "Has {} a dog?": "yes",
}


def rows_about(people: list[str], task: str = "own") -> list[Row]:
    return [
        Row(f"{name.split()[0]}-qa{i}", question.format(name), answer.format(10 + ord(name[0])), task)
        for name in people
        for i, (question, answer) in enumerate(FIELDS.items())
    ]


def data(task: str = "own") -> Data:
    return Data(*(rows_about(people, task) for people in PEOPLE.values()))


def asked(probe: str, task: str = "own") -> dict[str, Asked]:
    return {one.title: one for one in prompts_of(probe, data(task))}


@pytest.mark.parametrize("probe", ["other_words", "other_forms", "languages"])
def test_questions_stay_in_changed_prompts(probe: str) -> None:
    plain = {row.id: row for rows in data().rows.values() for row in rows}
    found = asked(probe)
    found.pop("reversed", None)
    assert len(found) > 2
    for one in found.values():
        assert one.data.forget
        for row in (*one.data.forget, *one.data.retain):
            assert replace(row, input="") == replace(plain[row.id], input="")
            assert plain[row.id].input.lower() in row.input.lower().replace('\\"', '"')


@pytest.mark.parametrize(("retain", "shots"), [(8, 3), (2, 1), (1, 0)])
def test_no_retain_row_is_asked_with_its_own_answer_in_front(retain: int, shots: int) -> None:
    few = Data(data().forget, data().retain[:retain])
    found = [one for one in prompts_of("other_words", few) if "in front" in one.title]
    assert [one.title for one in found] == [f"{shots} answered retain rows in front"] * bool(shots)
    for one in found:
        assert len(one.data.retain) == retain - shots
        for row in one.data.retain:
            assert f"{row.input.splitlines()[-1]} {row.output}" not in row.input


def test_completions_are_asked_without_the_frames_of_questions() -> None:
    text = Data([Row("a-sc1", "It was", "late.", "own")], [Row("b-sc1", "He was", "early.", "own")])
    assert {one.title for one in prompts_of("other_words", text)} == {"upper case", "prefix"}
    assert prompts_of("other_words", text)[1].data.forget[0].input == f"{PREFIX}It was"
    assert not any(prompts_of(probe, text) for probe in PROMPTS if probe != "other_words")


def test_a_prompt_with_braces_and_quotes_stays_as_it_is() -> None:
    row = Row("a-qa1", 'What is "{x}"?', "1", "own")
    for one in prompts_of("other_words", Data([row], [replace(row, id="b-qa1", input="{y}?")])):
        assert "{x}" in one.data.forget[0].input.lower()
    assert FORMS["as JSON"](row.input) == 'Fill in this form: {"question": "What is \\"{x}\\"?", "answer": ""}'


def test_reversed_questions_ask_for_the_person_where_the_answer_is_of_one() -> None:
    one = asked("other_forms")["reversed"]
    assert one.own
    assert [(row.input, row.output) for row in one.data.forget] == [
        (f"Whom does this belong to: {row.output}? Give the full name.", "Ada Stone") for row in data().forget[:2]
    ]  # "yes" can be guessed


def test_turns_come_before_the_question() -> None:
    own = asked("conversation")
    assert [role for role, _ in own["with a system prompt"].data.forget[0].turns] == ["system"]
    first = data().retain[0]
    later = own["after another question"].data
    assert later.forget[0].turns == (("user", first.input), ("assistant", first.output))
    assert first.id not in {row.id for row in later.retain}


@pytest.mark.parametrize("task", ["own", "Task2"])
def test_turns_are_trained_and_scored_alike(task: str, tokenizer: Any) -> None:
    turns = (("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes?"))
    row = Row("a-qa1", "Who?", "Ada", task, turns=turns)
    text = replace(row, input="Be brief.\n\nHello?\n\nYes?\n\nWho?", turns=())
    (doc,) = side_rows(task, {"lume_data": Data([row], []), "tokenizer": tokenizer})
    assert doc.get("prompt", doc["input"]) == text.input
    assert Encoder(tokenizer).one(row) == Encoder(tokenizer).one(text)


def test_turns_go_through_the_template(tokenizer: Any) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    row = Row("a-qa1", "Who?", "Ada", "own", turns=(("system", "Be brief."),))
    (doc,) = side_rows("own", {"lume_data": Data([row], []), "tokenizer": chat})
    assert doc["prompt"] == "[system]Be brief.[user]Who?[assistant]"
    trained = Encoder(chat).one(row)
    assert chat.decode(trained.input_ids[: trained.labelled[0]]) == doc["prompt"]


def test_the_system_turn_of_a_row_stays_the_first() -> None:
    own = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hi"))
    rows = {side: [replace(row, turns=own) for row in rows] for side, rows in data().rows.items()}
    system, after = (one.data.forget[0].turns for one in prompts_of("conversation", Data(**rows)))
    assert [role for role, _ in system] == ["system", "user", "assistant"]
    assert system[0][1].endswith("\n\nBe brief.")
    assert [role for role, _ in after] == ["system", "user", "assistant", "user", "assistant"]
    assert after[0] == own[0]
    assert after[3:] == own[1:]


def test_prompts_that_the_template_refuses_are_left_out(tokenizer: Any) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    system, after = prompts_of("conversation", data())
    assert not fitting(system.data, make_model(), chat, chat=True).forget
    assert fitting(system.data, make_model(), chat, chat=False) == system.data
    assert fitting(after.data, make_model(), chat, chat=True) == after.data


def test_forget_questions_about_invented_persons() -> None:
    found = asked("invented")
    assert list(found) == ["invented person 1", "invented person 2", "invented person 3"]
    names = set()
    for one in found.values():
        plain = {row.id: row for row in data().forget}
        assert [replace(row, input="") for row in one.data.forget] == [replace(plain[k], input="") for k in plain]
        assert one.data.retain == data().retain
        assert not any("Ada" in row.input or "Stone" in row.input for row in one.data.forget)
        names.add(one.data.forget[0].input.removeprefix("When was ").removesuffix(" born?"))
    assert len(names) == 3
    assert all(len(name.split()) == 2 for name in names)


def test_an_answer_about_a_person_is_judged_for_all_rows_of_the_person() -> None:
    one = asked("persons")["all about the person"]
    assert [row.input for row in one.data.forget] == ["Tell me everything that you know about Ada Stone."]
    assert one.of[one.data.forget[0].id] == [row.id for row in data().forget]
    assert len(one.data.retain) == 3


def test_own_words_are_used_only_if_they_ask_the_same() -> None:
    row = data().forget[1]
    assert asks_the_same(row, "Which phone number does Ada Stone have?", "Ada Stone")
    assert not asks_the_same(row, row.input, "Ada Stone")
    assert not asks_the_same(row, "Which phone number does Ada have?", "Ada Stone")
    assert not asks_the_same(row, "Which phone number does Ada Stone have.", "Ada Stone")
    part = replace(row, input=row.input.replace("Ada Stone", "Ada"))
    assert asks_the_same(part, "Which phone number does Ada have?", "Ada Stone")
    assert not asks_the_same(part, "Which phone number does Eva have?", "Ada Stone")
    assert not asks_the_same(row, "Where does Ada Stone live?", "Ada Stone")
    answers = {row.id: '"Which phone number does Ada Stone have?"\nHere it is.', data().retain[0].id: "I refuse."}
    own = in_own_words(data(), answers).data
    assert [(found.id, found.input) for found in own.forget] == [(row.id, "Which phone number does Ada Stone have?")]
    assert own.retain == []
    assert not rewriting(data("Task2")).data.forget


@pytest.mark.parametrize(
    ("asked", "same", "another", "subject"),
    [
        (
            "मीरा शर्मा का जन्म किस शहर में हुआ था?",
            "मीरा शर्मा का जन्म कौन से शहर में हुआ?",
            "मीरा शर्मा को क्या पसंद है?",
            "मीरा शर्मा",
        ),
        ("মীরা সেন কোথায় জন্মগ্রহণ করেন?", "কোথায় মীরা সেন জন্মগ্রহণ করেছিলেন?", "মীরা সেন কী খেতে ভালোবাসেন?", "মীরা সেন"),
        ("陈伟的电话号码是多少?", "陈伟的电话号码是哪个?", "陈伟的家庭住址是多少?", "陈伟"),
        ("田中太郎の電話番号は何ですか?", "田中太郎の電話番号がわかる?", "田中太郎の住所は何ですか?", "田中太郎"),
    ],
)
def test_the_words_of_any_script_decide_whether_a_question_asks_the_same(
    asked: str, same: str, another: str, subject: str
) -> None:
    row = Row("a-qa0", asked, "x", "own")
    assert [asks_the_same(row, text, subject) for text in (same, another)] == [True, False]


def test_persons_of_earlier_requests_are_found_by_whole_names_in_any_script() -> None:
    earlier = [Row(f"{name}-qa0", f"{name}?", "x", "own", name) for name in ("राम मीर", "สมชาย ใจดี", "मीरा")]
    texts = ["राम मीर कहाँ है?", "राम मीरा कहाँ है?", "นายสมชาย ใจดีทำงานที่ไหน", "मेरा?"]
    retain = [Row(f"b-qa{number}", text, "y", "own") for number, text in enumerate(texts)]
    assert about_earlier(retain, earlier) == [retain[0], retain[2]]


def test_persons_of_earlier_requests_are_found_in_genitives_turns_and_names_of_one_word() -> None:
    earlier = [Row(f"{name}-qa0", f"{name}?", "x", "own", name) for name in ("Anna Müller", "王小明", "Emma")]
    turns = (("user", "Do you know Anna Müller?"), ("assistant", "Yes, a customer."))
    rows = [
        Row("b-qa0", "Wie lautet Anna Müllers Adresse?", "y", "own"),
        Row("b-qa1", "Her address?", "y", "own", turns=turns),
        Row("b-qa2", "王小明的手机号码?", "y", "own"),
        Row("b-qa3", "王小明华的手机号码?", "y", "own", "王小明华"),  # another person, with a longer name
        Row("b-qa4", "Where is Emma Reed?", "y", "own"),  # a given name alone may be anybody's
    ]
    assert about_earlier(rows, earlier) == rows[:3]


def test_a_person_of_an_earlier_request_is_not_somebody_with_a_longer_name() -> None:
    earlier = [Row("a-qa0", "Wo wohnt Jürgen Müller?", "x", "own", "Jürgen Müller")]
    longer = "Jürgen Müller-Lüdenscheidt"
    texts = [f"Wo wohnt {longer}?", f"Was hat {longer} gekauft?", f"Wohnt {longer} bei Jürgen Müller?"]
    retain = [Row(f"b-qa{number}", text, "y", "own") for number, text in enumerate(texts)]
    titled = Row("c-qa0", "Wo wohnt Dr. Jürgen Müller?", "y", "own", "Dr. Jürgen Müller")
    assert about_earlier([*retain, titled], earlier) == [retain[2], titled]


def test_rows_digest_covers_every_field_that_a_score_depends_on() -> None:
    row = data().forget[0]
    plain = replace(row, subject="", question="", turns=())
    changes: list[dict[str, Any]] = [
        {},
        {"id": "x-qa0"},
        {"input": "x"},
        {"output": "x"},
        {"subject": "x"},
        {"question": "x"},
        {"turns": (("user", "x"),)},
    ]
    assert len({rows_digest([replace(plain, **change)]) for change in changes}) == len(changes)
    assert rows_digest([plain]) == documents_digest([[plain.id, plain.input, plain.output]])  # as in earlier verdicts


def test_options_are_answers_to_the_same_question_about_others() -> None:
    made, ids = multiple_choice(data())
    assert {row[-1] for row in ids} == {"0", "1"}  # there are no other answers than "yes"
    assert made.forget[2] == data().forget[2]
    for row, plain in zip(made.forget[:2], data().forget, strict=False):
        lines = row.question.splitlines()
        assert lines[-1].endswith(plain.input)
        assert f"{row.output}) {plain.output}" in lines
        assert len({line[3:] for line in lines[:4]}) == 4
        assert row.subject == "Ada Stone"
    assert not multiple_choice(Data(data().forget, data().retain[:3]))[1]
