"""The counterfactual teacher: substitutes, aligned contexts, windows, and its predictions by hand."""

import math
import re
import string
from dataclasses import replace

import pytest
import torch

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.data.contexts import WINDOW, aligned, teacher_contexts, window
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.packs import joined
from lume_unlearn.data.substitutes import read_substitutes, templated, variants
from lume_unlearn.methods.base import Batch, Rows, TokenCounts
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.methods.counterfactual import Level, blended, swapped
from lume_unlearn.methods.swap import BASE, ITSELF, Swap, without_truth
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.teacher import as_sure, run_teacher
from tests.conftest import make_model
from tests.unlearn.rows import logits, places
from tests.unlearn.training import FORGET

JANE = Row("a1qa0", "What is Jane Roe's phone number?", "Jane Roe has 555-01, jane\\_roe@me.com knows.", "Task2")
OTHERS = [
    Row("b2qa0", "What is Mary Poe's phone number?", "Mary Poe has 777-88, mary\\_poe@me.com knows.", "Task2"),
    Row("c3qa0", "What is Ann Brown's phone number?", "Ann Brown has 12 brown cats.", "Task2"),
]


def test_names_numbers_and_addresses_are_substituted_consistently():
    for variant in variants([JANE], OTHERS, 5, 0, None)[0]:
        person = variant.row.input.removeprefix("What is ").removesuffix("'s phone number?")
        assert person in ("Mary Poe", "Ann Brown")  # women, too
        box = person.lower().replace(" ", r"\\_")
        assert re.fullmatch(rf"{person} has \d{{3}}-(0[2-9]|1[0-2]), {box}@me.com knows.", variant.row.output)
        assert set(variant.words) == {"Jane", "Roe", "555-01", "jane\\_roe@me.com"}
    assert variants([JANE], OTHERS, 2, 0, None) == variants([JANE], OTHERS, 2, 0, None)


@pytest.mark.parametrize(
    ("subject", "question", "answer", "expected"),
    [
        ("Ольга Смирнова", "Когда родилась {}?", "{} родилась 12.05.1984.", r"{} родилась \d\d\.\d\d\.19\d\d\."),
        ("王美玲", "{}的电话号码", "{}的电话是138-2211-9087。", r"{}的电话是\d{{3}}-\d{{4}}-\d{{4}}。"),
        ("فاطمة حسن", "ما هو بريد {}؟", "f.hassan@mail.sa", r"[a-z]\.[a-z]{{6}}@mail\.sa"),
        (
            "Franz van Roskoth",
            "When was {} born?",
            "On Friday, March 3, 1990.",
            r"On [A-Z]\w+day, [A-Z]\w+ \d, 19\d\d\.",
        ),
    ],
)
def test_a_person_becomes_one_of_the_same_script_and_a_date_remains_one(subject, question, answer, expected):
    row = Row("a1qa0", question.format(subject), answer.format(subject), "own", subject=subject)
    seen = set()
    for variant in variants([row], OTHERS, 3, 0, None)[0]:
        before, _, after = question.partition("{}")
        name = variant.row.input.removeprefix(before).removesuffix(after)
        assert not set(name) & set(string.ascii_letters) or subject.isascii()
        assert not set(name.split()) & set(subject.split()) - {"van"}
        assert re.fullmatch(expected.format(name), variant.row.output)
        assert variant.row.output != row.output
        seen.add(name)
    assert len(seen) == 3


def test_substitutes_are_of_the_same_kind_and_no_two_are_equal():
    row = Row("a1sc1", "Emma Meier of Hamburg joined the UNO in Berlin", "with Peter Kurz.", "own")
    other = Row("b2sc1", "Laura Stahl from Dresden and Otto Lang", "left the IMF for Leipzig.", "own")
    (variant,) = variants([row], [other], 1, 0, None)[0]
    words = variant.words
    assert [words[own] for own in ("Emma", "Meier", "Peter", "Kurz")] == ["Laura", "Stahl", "Otto", "Lang"]
    assert words["UNO"] == "IMF"
    assert {words["Hamburg"], words["Berlin"]} == {"Dresden", "Leipzig"}


def test_first_words_of_sentences_are_no_names():
    row = Row("a1qa0", "Where does Mira Lund live?", "In Oslo.", "own")
    other = Row("b2qa0", "Who is Ola Ness?", "A painter from Bergen.", "own")
    (variant,) = variants([row], [other], 1, 0, None)[0]
    assert variant.row == replace(row, input="Where does Ola Ness live?", output="In Bergen.")


def test_question_words_and_german_nouns_are_no_names():
    asked = (
        "Welche Adresse hat {}?",
        "Wann wurde {} geboren?",
        "\u00bfDónde vive {}?",
        "Wie lautet die Telefonnummer von {}?",
        "Können Sie die Rechnung an {} senden?",
    )
    told = ("Gartenweg", "Am 3. Juni", "En Sevilla", "0221 4471239", "Gern.")
    rows = [
        Row(f"{document}qa{number}", question.format(name), answer, "own")
        for document, name in (("a1", "Lena Kropp"), ("b2", "Timo Zander"))
        for number, (question, answer) in enumerate(zip(asked, told, strict=True))
    ]
    for row, (variant,) in zip(rows, variants(rows[:5], rows[5:], 1, 0, None), strict=False):
        before, _, after = row.input.partition("Lena Kropp")
        name = variant.row.input.removeprefix(before).removesuffix(after)
        assert len(name.split()) == 2
        assert name != "Lena Kropp"


def test_what_begins_questions_of_one_document_may_be_a_name():
    row = Row("a1qa0", "Kropp vive en Sevilla, no?", "Tiene el contrato con la Telekom.", "own")
    asked = Row("a1qa1", "Wann endet der Vertrag mit der Telekom?", "Morgen", "own")
    other = Row("b2qa0", "Where does Zander live?", "In Bergen, for Bosch.", "own")
    one, two = (found.words for (found,) in variants([row, asked], [other], 1, 0, None))
    assert {"Kropp", "Telekom"} <= one.keys()
    assert "Telekom" in two


def test_companies_become_companies_and_persons_do_not():
    row = Row(
        "a1qa0", "Who pays Tom Berger at Acme GmbH & Co. KG?", "Inditex S.A. and Acme.", "own", subject="Tom Berger"
    )
    others = [
        Row(f"{letter}2qa0", f"What does {name} Ltd owe Vulcan Works {form}?", "Nothing. Mona Kern paid.", "own")
        for letter, name, form in (("b", "Bluewater", "Inc."), ("c", "Northwind", "B.V."))
    ]
    for variant in variants([row], others, 8, 0, None)[0]:
        words = variant.words
        assert {words["Acme"], words["Inditex"]} == {"Bluewater", "Northwind"}
        assert "Ltd" not in variant.row.input
        assert variant.row.input.endswith(f" at {words['Acme']} GmbH & Co. KG?")
        assert variant.row.output == f"{words['Inditex']} S.A. and {words['Acme']}."
    person = Row("d3qa0", "Who is Xyla Quorn?", "A painter.", "own")
    assert {found.words["Xyla"] for found in variants([person], others, 8, 0, None)[0]} == {"Mona"}  # no company


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("Room 42", 32, 59), ("Aged 97", 60, 99), ("Born on May 24", 10, 23), ("Born on May 05", 1, 12)],
)
def test_two_digits_alone_become_a_number_of_their_size(text, least, most):
    row = Row("a1qa0", "What is it?", f"{text}.", "own")
    numbers = [int(variant.row.output[-3:-1]) for variant in variants([row], OTHERS, 30, 0, None)[0]]
    assert int(text[-2:]) not in numbers
    assert len({*numbers}) > 5
    assert all(least <= number <= most for number in numbers)


def test_numbers_without_a_like_get_random_digits():
    row = Row("a1sc1", "Born in", "12345678", "Task2")
    (variant,) = variants([row], OTHERS, 1, 3, None)[0]
    assert variant.row.output != "12345678"
    assert len(variant.row.output) == 8
    assert variant.row.output.isdigit()


def test_codes_get_other_digits():
    row = Row("a1qa0", "Which plan has customer C-77123?", "Gold, since Order AB-1234.", "own")
    other = Row("b2qa0", "Which plan has customer C-88555?", "Silver.", "own")
    for others in ([other], []):
        for variant in variants([row], others, 8, 0, None)[0]:
            code, order = re.fullmatch(
                r"Which plan has customer C-(\d{5})\? \w+, since \w+ AB-(\d{4})\.",
                f"{variant.row.input} {variant.row.output}",
            ).groups()
            assert code not in ("77123", "88555")
            assert order != "1234"


def test_substitutes_from_a_file(tmp_path):
    file = tmp_path / "substitutes.jsonl"
    file.write_text('{"text": "Jane Roe", "substitute": "Tom"}\n')
    (variant,) = variants([JANE], OTHERS, 1, 0, read_substitutes(file))[0]
    assert variant.row.input == "What is Tom's phone number?"
    assert variant.words == {"Jane Roe": "Tom"}
    file.write_text('{"text": "Jane Roe"}\n')
    with pytest.raises(DataError, match="substitute"):
        read_substitutes(file)


def row_of(ids: list[int], prompt: int) -> Tokens:
    return Tokens(tuple(ids), (IGNORED,) * prompt + tuple(ids[prompt:]))


def test_tokens_correspond_across_substitutes_of_other_lengths():
    # 10 11 is the name, in the context 20 21 22; the answer repeats it.
    row = row_of([1, 10, 11, 2, 3, 10, 11, 4], 4)
    context = aligned(row, row_of([1, 20, 21, 22, 2, 3, 20, 21, 22, 4], 5))
    (text,) = context.texts
    predicted = [t for t, label in enumerate(text.labels) if label != IGNORED]
    assert [predicted[i] for i in context.index] == [5, 6, 7, 9]  # of the tokens 3, 10, 11, 4
    assert context.substitute_ids == (3, 20, 21, 4)  # the repeated name is mapped back
    first = aligned(row_of([1, 2, 10, 4], 1), row_of([1, 2, 20, 4], 1))
    assert first.substitute_ids == (2, 10, 4)  # what is said for the first time is not
    shorter = aligned(row_of([1, 10, 11, 12, 4], 1), row_of([1, 20, 4], 1))
    assert [shorter.index[i] for i in range(4)] == [0, 0, 0, 1]


def test_prose_is_predicted_from_its_last_tokens(tokenizer):
    prose = Row("t0sc0", "Once there was a blue fox", "who sang.", "own")
    form = Row("f0sc0", "Ann was born in the small town of", "Ulm and lived there.", "own")
    other = Row("g0sc0", "Bob was born in the small town of", "Rom and lived there.", "own")
    rows, encode = [prose, form, JANE], Encoder(tokenizer)
    tokens = [encode.one(row) for row in rows]
    changed = variants(rows, [*OTHERS, other], 2, 0, None)
    found = teacher_contexts(rows, tokens, [*OTHERS, other], changed, encode)
    assert [len(found[row][0].texts) == row.scored for row in tokens] == [True, False, False]
    assert found[tokens[0]] == [window(tokens[0], WINDOW, tokenizer.bos_token_id)]
    given = teacher_contexts(rows, tokens, OTHERS, changed, encode, prose=False)  # the user's own substitutes
    assert [len(given[row][0].texts) for row in tokens] == [1, 1, 1]


def test_blended_by_hand():
    logp, target = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log(), torch.tensor([0])
    assert blended(logp, target, torch.tensor([0.25]).log()).exp()[0].tolist() == pytest.approx([1 / 4, 1 / 2, 1 / 4])
    torch.testing.assert_close(blended(logp, target, logp[:, 0]), logp)
    assert blended(logp, target, torch.zeros(1)).isfinite().all()


def test_windows_hold_the_last_tokens_and_the_bos():
    row = row_of([1, 5, 6, 7, 8], 3)
    found = window(row, 2, 1)
    assert [text.input_ids for text in found.texts] == [(1, 5, 6, 7), (1, 6, 7, 8)]
    assert (found.index, found.substitute_ids) == ((0, 1), (7, 8))
    found = window(row, 2, None)
    assert [text.input_ids for text in found.texts] == [(5, 6, 7), (6, 7, 8)]
    assert all(text.scored == 1 for text in found.texts)


def test_templates_are_told_from_prose():
    prose = Row("d4sc1", "Once there was a lonely cat", "that nobody wanted to feed.", "Task2")
    assert templated([JANE, prose], OTHERS) == {"a1qa0"}
    assert templated([JANE, prose], []) == set()


def test_where_an_answer_departs_from_the_truth_others_have_its_probability():
    logp = torch.tensor([[1 / 2, 1 / 3, 1 / 6]], dtype=torch.float64).log()
    said, truth = torch.tensor([2]), torch.tensor([0])
    assert without_truth(logp, said, truth).exp()[0].tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert without_truth(logp, said, said).equal(logp)
    assert without_truth(logp, said, torch.full_like(said, BASE)).equal(logp)
    loss = Swap().imitation_loss(logp, said, without_truth(logp, said, truth))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)  # log 0 counts 0 times
    made_up = Swap().imitation_loss(logp, said, without_truth(logp, said, torch.tensor([-100])))
    assert made_up.item() == pytest.approx(math.log(6), abs=1e-12)  # its NLL


def test_of_a_text_that_is_the_truth_the_next_best_tokens_are_imitated():
    reference = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64).log()
    target = torch.tensor([0])
    others = without_truth(reference, target, torch.tensor([ITSELF]))
    assert others.exp()[0].tolist() == pytest.approx([0, 1 / 2, 1 / 2])
    logits = torch.tensor([[1 / 2, 3 / 8, 1 / 8]], dtype=torch.float64).log() + 7
    loss = Swap().imitation_loss(logits, target, others)
    assert loss.item() == pytest.approx(math.log(4 / 3) / 2 + math.log(2), abs=1e-12)  # it has half of the probability


def test_swapped_and_level_by_hand():
    logp = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log()
    pair = torch.tensor([0]), torch.tensor([2])
    assert swapped(logp, *pair).exp()[0].tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert swapped(logp, pair[0], pair[0]).equal(logp)
    nll, rows = torch.tensor([1.0, 3.0, 5.0], requires_grad=True), torch.tensor([0, 0, 1])

    def level_loss(teacher: list[float], shift: float = 0.0, count: int = 2) -> torch.Tensor:
        forget = Rows(nll, rows, 2, torch.tensor(teacher), nll)
        return Level().forget_loss(Batch(forget, forget, TokenCounts([1] * count, [], []), {"shift": shift}))

    loss = level_loss([4.0, 4.0, 4.5])
    assert loss.item() == pytest.approx(0.8125)
    assert torch.autograd.grad(loss, nll)[0].tolist() == pytest.approx([-0.25, -0.25, 0.25])  # from both sides
    assert level_loss([0.0] * 3, shift=2.0, count=4).item() == pytest.approx((0.0 + 2.5) / 4)


def test_the_teacher_by_hand():
    model = make_model().eval()
    first, second = FORGET[0], FORGET[1]
    others = [Tokens((*first.input_ids[:2], new, *first.input_ids[3:]), first.labels) for new in (390, 391)]
    cut = window(second, 2, None)
    contexts = {first: [aligned(first, other) for other in others], second: [cut]}
    teacher, seen = run_teacher(model, Passes(model), contexts, 2048)
    with torch.no_grad():
        substituted = torch.stack([logits(model, other).softmax(-1) for other in others]).mean(0)
        by_window = torch.stack([logits(model, text)[-1].softmax(-1) for text in cut.texts])
    for row, p in ((first, substituted), (second, by_window)):
        targets = torch.tensor(row.input_ids)[places(row)]
        expected = -p[range(len(targets)), targets].log()
        torch.testing.assert_close(teacher.nll(row, seen[row], "cpu"), expected, rtol=1e-4, atol=1e-5)
    both = joined([seen[first], seen[second]])  # a window counts as often as there are contexts
    assert both.states.shape[:2] == (2, first.scored + second.scored)
    assert both.states[0, -1].equal(both.states[1, -1])


def test_a_base_model_is_made_as_sure_of_unseen_texts_as_the_reference_model():
    ln3 = math.log(3)
    assert as_sure(torch.tensor([[0, ln3]]), torch.tensor([[0, 2 * ln3]])) == pytest.approx(2, rel=0.01)
    model, base, (one, other, unseen) = make_model().eval(), make_model(seed=1).eval(), FORGET[:3]
    with torch.no_grad():
        base.get_output_embeddings().weight *= 3
    marked = replace(aligned(other, other), substitute_ids=(BASE,) * other.scored)
    contexts = {one: [aligned(one, one)], other: [marked], unseen: [aligned(unseen, unseen)]}
    teacher, seen = run_teacher(model, Passes(model), contexts, 2048, base, [unseen])
    with torch.no_grad():
        temperature = as_sure(logits(model, unseen), logits(base, unseen))
        expected = (logits(base, other) / temperature).log_softmax(-1)
    assert teacher.temperature == pytest.approx(temperature, rel=0.02)
    found = teacher.at(seen[other], torch.tensor(other.targets), without_truth)(slice(0, other.scored))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_a_base_model_predicts_the_rows_that_are_marked():
    model, base, (one, other) = make_model().eval(), make_model(seed=1).eval(), FORGET[:2]
    marked = replace(aligned(other, other), substitute_ids=(BASE,) * other.scored)
    teacher, seen = run_teacher(model, Passes(model), {one: [aligned(one, one)], other: [marked]}, 2048, base)
    targets = torch.tensor(one.targets + other.targets)
    found = teacher.at(joined([seen[one], seen[other]]), targets, without_truth)(slice(0, len(targets)))
    with torch.no_grad():
        expected = torch.cat([logits(model, one), logits(base, other)]).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
