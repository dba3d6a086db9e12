"""What `swap` trains on about invented persons: names in answers and questions, and answers that many rows have."""

import re
from dataclasses import replace
from unittest import mock

import pytest

from lume_tasks.data.rows import Row
from lume_unlearn.data import imitations
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.examples import encoded_examples
from lume_unlearn.data.imitations import gives_away, invented
from lume_unlearn.data.persons import control_rows, own_parts, own_words
from lume_unlearn.data.rows import as_rows
from lume_unlearn.methods.swap import Swap
from tests.unlearn.test_persons import PERSONS, RETAIN


def test_an_answer_names_the_person_who_is_asked_about(tokenizer):
    name, encode = PERSONS[0], Encoder(tokenizer)
    answers = [f"{name} lives in Ulm, Ms Quillane says.", f"{name} lives in Ulm.", "pq@quillane.org"]
    rows = as_rows([{"input": f"Where does {name} live?", "output": text, "document": name} for text in answers])

    def said(model, tokenizer, prompts, **_):
        return [re.sub("Where does (.*) live.*", r"\1 lives in Rom.", tokenizer.decode(prompt)) for prompt in prompts]

    with mock.patch.object(imitations, "generated", side_effect=said):
        found = invented(None, encode, rows, as_rows(RETAIN), 4, 4, 0)
    for control in found.controls[rows[0].id]:
        assert control.output == f"{control.subject} lives in Ulm, Ms {control.subject.split()[1]} says."
    assert {control.output for control in found.controls[rows[2].id]} == {answers[2]}
    told = found.imitations[rows[1].id]
    assert [one.row.output for one in told[:3]] == [f"{name} lives in Rom."] * 3
    assert told[3].row.output == f"{told[3].row.subject} lives in Rom."

    examples = encoded_examples(Swap(controls=4, answers=4), encode, rows, as_rows(RETAIN), None, found)
    answer, truth = examples.alternative[0], examples.forget[0]
    ((context,), ids) = examples.contexts[answer], answer.targets
    read = context.texts[0].targets  # the answer as the model gave it
    assert tokenizer.decode(read[:-1]).strip() == f"{found.controls[rows[0].id][0].subject} lives in Rom."
    shared = [n for n, mark in enumerate(context.substitute_ids) if mark != -100]
    assert len(shared) > len(tokenizer.encode(" lives in Rom."))
    assert all(read[context.index[n]] == ids[n] for n in shared)
    town = next(n for n, pair in enumerate(zip(ids, truth.targets, strict=False)) if len({*pair}) == 2)
    assert context.substitute_ids[town] == truth.targets[town]  # so it does not imitate that Ulm is likely


def test_no_imitation_is_longer_than_the_context(tokenizer):
    long, short = f"{'We met. ' * 20}Where does {PERSONS[0]} live?", f"What did {PERSONS[0]} write?"
    rows = as_rows([{"input": long, "output": "Ulm"}, {"input": short, "output": "we met at the port and " * 6}])
    context = max(len(Encoder(tokenizer).one(row).input_ids) for row in rows) + 8
    made = []

    def counted(model, tokenizer, prompts, *, max_new_tokens, **_):
        made.append(max(map(len, prompts)) + max_new_tokens)
        return ["Rom"] * len(prompts)

    with mock.patch.object(imitations, "generated", side_effect=counted):
        invented(None, Encoder(tokenizer, context=context), rows, as_rows(RETAIN), 4, 4, 0)
    assert 0 < max(made) <= context


def test_an_answer_that_most_rows_have_is_imitated_as_the_model_gave_it(tokenizer):
    def about(names):
        return [{"input": f"Where does {name} live?", "output": "Germany", "document": name} for name in names]

    rows, others, encode = as_rows(about(PERSONS[:1]) * 2), as_rows(about(PERSONS[1:])), Encoder(tokenizer)
    rows[1] = replace(rows[1], id="a-qa1", input=rows[1].input.replace("live", "work"))
    with mock.patch.object(imitations, "generated", side_effect=lambda m, t, prompts, **_: ["Germany"] * len(prompts)):
        found = invented(None, encode, rows, others, 4, 4, 0)
    for one in found.imitations["a-qa1"]:
        assert (one.row.output, one.mark) == ("Germany", None)  # with its probability, not with certainty
        assert one.asked


def test_no_part_of_the_name_is_left_before_the_question_and_no_word_of_the_answer_is_changed():
    before = (("user", "Who is petra.quillane@me.com?"), ("assistant", "Ms Quillane; ask Petra."))
    one = Row("a-qa1", f"Where does {PERSONS[0]} live?", "At Petrapark, petra.quillane@me.com", "own", turns=before)
    other = Row("b-qa1", "Where does Art work?", "Art is an Artist.", "own", subject="Art")
    found = control_rows([replace(one, subject=PERSONS[0]), other], [], 2, 2, len, 0)
    for control in found["a-qa1"]:
        first, last = control.subject.split()
        turns = f"Who is {first}.{last}@me.com?".lower(), f"Ms {last}; ask {first}."
        assert [text.lower() for _, text in control.turns] == [text.lower() for text in turns]
        assert control.output == one.output
    assert all(control.output == f"{control.subject} is an Artist." for control in found["b-qa1"])


def test_a_question_is_about_the_person_of_the_turns_before_it():
    first = Row("a-qa1", f"Who is {PERSONS[0]}?", "A cook.", "own", subject=PERSONS[0])
    before = (("user", first.input), ("assistant", first.output))
    she, why = (
        Row(f"a-qa{n}", text, "In Ulm.", "own", turns=before) for n, text in ((2, "Where does she live?"), (3, "Why?"))
    )
    found = control_rows([first, she, replace(why, turns=())], [], 2, 2, len, 0)
    for control in found[she.id]:
        assert control.turns == (("user", f"Who is {control.subject}?"), before[1])
        assert control.input == she.input
    assert {control.turns for control in found["a-qa3"]} == {()}


@pytest.mark.parametrize(
    ("truth", "template", "parts"),
    [
        ("她出生于1990年3月,住在昆明。", "她出生于1985年3月,住在上海。", ["1990", "在昆明"]),
        ("佐藤は札幌に住んでいます。", "田中は大阪に住んでいます。", ["佐藤は札幌に"]),
        ("เธอเกิดที่เชียงราย", "เธอเกิดที่กรุงเทพ", ["ที่เชียงราย"]),
    ],
)
def test_own_words_in_scripts_without_spaces(truth, template, parts):
    others = [Row(f"b-qa{number}", "?", template, "own") for number in range(3)]
    words = own_words([Row("a-qa0", "?", truth, "own")], others)["a-qa0"]
    assert [truth[start:end] for start, end in own_parts(truth, words)] == parts
    assert not gives_away(template, Row("a-qa0", "?", truth, "own"), words)
