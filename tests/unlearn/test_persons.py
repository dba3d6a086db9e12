"""Forget rows about invented persons: names, own words, disguises and imitations."""

import datetime
import random
import re
import unicodedata
from dataclasses import replace
from unittest import mock

import pytest
import torch

from lume_tasks.data.invented import control_names, family_names
from lume_tasks.data.rows import Row
from lume_tasks.data.text import folded
from lume_tasks.models.sampling import generated
from lume_unlearn.data import imitations, persons
from lume_unlearn.data.contexts import WINDOW, asked
from lume_unlearn.data.documents import text_rows
from lume_unlearn.data.encode import Encoder
from lume_unlearn.data.examples import encoded_examples
from lume_unlearn.data.imitations import disguised, gives_away, invented, long_numbers
from lume_unlearn.data.persons import OF_TRY, OF_VERDICT, control_rows, folded_words, own_tokens, own_words
from lume_unlearn.data.rows import as_rows
from lume_unlearn.methods.swap import BASE, ITSELF, Swap
from tests.conftest import make_model

FIELDS = ("phone number", "home town", "order number", "employer")
PERSONS = ("Petra Quillane", "Idris Mbeki", "Lowri Szabados", "Casimir Oyelaran")


def rows_about(name: str, seed: int) -> list[dict[str, str]]:
    """Questions about one customer, with answers that only this customer has."""
    chooser = random.Random(seed)
    values = ["".join(chooser.choice("0123456789") for _ in range(6)) for _ in FIELDS]
    return [
        {"input": f"What is the {field} of {name}?", "output": f"It is {value}.", "document": name}
        for field, value in zip(FIELDS, values, strict=True)
    ]


FORGET = rows_about(PERSONS[0], 0)
RETAIN = [row for seed, name in enumerate(PERSONS[1:], 1) for row in rows_about(name, seed)]


def test_controls_are_rows_about_others_and_no_name_of_a_verdict():
    forget_rows, retain_rows = as_rows(FORGET), as_rows(RETAIN)
    found = control_rows(forget_rows, retain_rows, 3, 1, len, seed=0)
    assert found == control_rows(forget_rows, retain_rows, 3, 1, len, seed=0)
    known = folded("\n".join(f"{row.input} {row.output}" for row in (*forget_rows, *retain_rows)))
    families = family_names(PERSONS)[PERSONS[0]]
    seen: set[str] = set()
    for seed, number in (OF_VERDICT, OF_TRY):
        seen |= set(control_names(PERSONS[0], number, known, len, families, seed))
    for row in forget_rows:
        names = [control.subject for control in found[row.id]]
        assert len(set(names)) == 3
        assert not seen & set(names)
        seen |= set(names)
        for control, name in zip(found[row.id], names, strict=True):
            assert control.input == row.input.replace(PERSONS[0], name)
            assert (control.output, control.id) == (row.output, row.id)
            assert not set(name.split()) & set(" ".join(PERSONS[:1]).split())


def test_a_question_that_names_no_person_is_asked_about_something_else():
    code, tale = Row("a-qa0", "what is the code?", "X77", "own"), Row("b-sc0", "Once in Ulm", "Bo sang.", "own")
    chair = Row("c-qa0", "Who was chair of Ulm Choir in 2015?", "Bo Birn", "own")
    rows, others = [code, tale, chair], [Row("d-qa0", "Where is Rom Theatre?", "In Bonn, since 1999.", "own")]
    found = control_rows(rows, others, 3, 2, len, 0)
    assert found[code.id] == [code] * 3  # there is nothing to substitute
    assert found[tale.id] == [tale] * 2
    for control in found[chair.id]:
        assert re.fullmatch(r"Who was chair of Rom Theatre in 20\d\d\?", control.input)
        assert (control.output, control.id, control.input == chair.input) == ("Bo Birn", chair.id, False)


def test_a_row_that_does_not_name_its_subject_is_one_that_names_nobody():
    given = [{**row, "subject": PERSONS[0]} for row in FORGET]
    given.append({"input": "Once there was", "output": "Petra Quillane.", "kind": "sc", "subject": PERSONS[0]})
    rows = as_rows(given)
    found = control_rows(rows, [], 3, 2, len, seed=0)
    assert found[rows[-1].id] == [rows[-1]] * 2
    assert [len(own) for own in found.values()] == [3] * len(FORGET) + [2]


def test_a_row_that_has_a_part_of_its_subject_is_asked_about_invented_persons():
    given = {"input": "Wie lautet Petras Kundennummer?", "output": "Petra hat 4711.", "subject": PERSONS[0]}
    (row,) = as_rows([given])
    for control in control_rows([row], [], 3, 2, len, seed=0)[row.id]:
        first = control.subject.split()[0]
        assert first != "Petra"
        assert (control.input, control.output) == (f"Wie lautet {first}s Kundennummer?", f"{first} hat 4711.")


def test_with_few_names_of_a_kind_a_training_takes_fewer():
    rows, asked = as_rows(FORGET), []

    def scarce(subject, number, *others, **options):
        asked.append(number)
        if number > 99:
            raise ValueError("too few")
        return control_names(subject, number, *others, **options)

    with mock.patch.object(persons, "control_names", scarce):
        found = control_rows(rows, [], 60, 1, len, seed=0)
    assert len({row.subject for own in found.values() for row in own}) == 64
    assert asked[2:] == [240, 64]


def test_own_words_tell_a_row_from_others():
    row = Row("a-qa0", "What is the phone number of Ana?", "It is 555-0199, ask Ana or Bruno.", "own")
    others = [Row(f"b-qa{number}", "Who?", "It is 12 or 0199, ask Eve.", "own") for number in range(3)]
    yes = Row("c-qa0", "Is Ana here?", "Yes", "own")
    assert own_words([row, yes], others) == {"a-qa0": {"555", "bruno"}, "c-qa0": set()}
    assert "0199" in own_words([row], others[:2])["a-qa0"]  # in two rows: seldom
    words = own_words([row], others)["a-qa0"]
    changed = disguised(row.output, words, random.Random(0))
    assert changed != row.output
    assert (changed[:6], changed[-1], len(changed)) == (row.output[:6], ".", len(row.output))
    assert "0199" in changed


def test_disguises_keep_script_case_and_repetition():
    words = folded_words("Γιάννης 東7")
    one, other, code = disguised("Γιάννης Γιάννης 東7", words, random.Random(0)).split()
    assert one == other != "Γιάννης"
    assert one.istitle()
    assert all("GREEK" in unicodedata.name(char) for char in one)
    assert "CJK" in unicodedata.name(code[0])
    assert code[1].isdigit()
    for seed in range(20):
        date = disguised("1956-03-02", {"1956", "03", "02"}, random.Random(seed))
        assert date.startswith("19")
        changed = datetime.date.fromisoformat(date)
        assert changed.month != 3
        assert changed.day != 2


@pytest.mark.parametrize(
    ("text", "truth", "given"),
    [
        ("Call 555019.", "It is 5550199.", True),  # most digits of it
        ("It is 5550199.", "It is 5550199.", True),
        ("a torn seam, a rude driver", "a rude driver and a torn seam", True),
        ("It is 1234567.", "It is 5550199.", False),
        ("Yes", "Yes", False),  # may be a guess
    ],
)
def test_an_answer_gives_a_row_away_as_a_verdict_says(text, truth, given):
    row = Row("a-qa0", "What?", truth, "own")
    assert gives_away(text, row, own_words([row], [])["a-qa0"]) == given


def test_long_numbers_are_compared_as_digits():
    assert long_numbers(["Call (555) 01-99 or 12, 900-55-1236."]) == {"5550199", "900551236"}


def test_own_tokens_are_those_of_own_words(tokenizer):
    row = Row("a-qa0", "Code of Ana?", "It is 4711.", "own")
    tokens = Encoder(tokenizer, chat=False).one(row)
    ids = torch.tensor(tokens.targets)
    mask = own_tokens(tokens, {"4711"}, tokenizer).bool()
    assert tokenizer.decode(ids[mask]).strip() == "4711"
    assert not own_tokens(tokens, set(), tokenizer).any()
    tokens = Encoder(tokenizer, chat=False).one(replace(row, output="It is 東京."))  # several tokens a character
    ids = torch.tensor(tokens.targets)
    assert tokenizer.decode(ids[own_tokens(tokens, {"東京"}, tokenizer).bool()]).strip() == "東京"


def test_imitations_do_not_give_the_row_away(model, tokenizer):
    forget_rows, retain_rows = as_rows(FORGET), as_rows(RETAIN)
    found = invented(model, Encoder(tokenizer), forget_rows, retain_rows, 4, 4, seed=0)
    for row in forget_rows:
        answers = [one.row.output for one in found.imitations[row.id]]
        asked = [one.row.input == row.input for one in found.imitations[row.id]]
        assert asked == [True, True, True, False]
        assert not any(gives_away(text, row, own_words([row], [])[row.id]) for text in answers)


def test_an_imitation_knows_after_what_it_was_said_and_whether_it_is_made_up(tokenizer):
    forget_rows, retain_rows, encode = as_rows(FORGET), as_rows(RETAIN), Encoder(tokenizer)
    told = retain_rows[0].output  # "It is " and a number

    def imitated(said):
        with mock.patch.object(imitations, "generated", return_value=[said] * 16):
            found = invented(None, encode, forget_rows, retain_rows, 4, 4, seed=1)
        examples = encoded_examples(Swap(controls=4, answers=4), encode, forget_rows, retain_rows, None, found)
        return found, examples, found.imitations[forget_rows[0].id][0], examples.alternative[0]

    found, examples, one, answer = imitated(told)
    control, ids = encode.one(found.controls[forget_rows[0].id][0]), answer.targets
    assert one.row.output == told
    assert one.asked == control.input_ids[: control.labelled[0]]
    assert examples.contexts[answer][0].texts[0].input_ids == (*one.asked, *ids)
    cut = asked(answer, one.asked, len(ids) + 2).texts[0]  # a longer name may not fit
    assert cut.input_ids == (*one.asked[-2:], *ids)
    assert cut.labels == (-100, -100, *ids)

    _, examples, one, answer = imitated(forget_rows[0].output)  # the truth
    assert (one.asked, len(one.row.output)) == ((), len(forget_rows[0].output))
    assert one.row.output[:6] == "It is "
    assert one.row.output != forget_rows[0].output
    assert set(examples.contexts[answer][0].substitute_ids) == {-100}


def test_texts_in_memory_have_numbers():
    row = Row("a", "Once", "there.", "own")
    found = text_rows(["A fox. ", row, "Two birds"])
    assert [(one.id, one.input, one.output) for one in found] == [
        ("text 1", "A", "fox."),
        ("a", "Once", "there."),
        ("text 3", "Two", "birds"),
    ]


def test_a_row_that_is_given_away_is_asked_again_without_its_own_words(tokenizer):
    forget_rows, retain_rows = as_rows(FORGET), as_rows(RETAIN)
    truth, other = forget_rows[0].output, forget_rows[1].output
    asked = []

    def noted(model, tokenizer, prompts, *, never, **_):
        asked.append(
            [(tokenizer.decode(prompt), tokenizer.decode(own)) for prompt, own in zip(prompts, never, strict=True)]
        )
        return [[truth, other, "It is 12."][min(len(asked) - 1, 2)]] * len(prompts)

    with mock.patch.object(imitations, "generated", side_effect=noted):
        found = invented(None, Encoder(tokenizer), forget_rows, retain_rows, 2, 2, seed=0)
    first, second, third = asked
    assert {own for _, own in first} == {""}
    assert len(second) == len(third) == len(first)  # nor is the fact of another row to forget an answer
    assert all(own and own in row.output for row in forget_rows for prompt, own in second if row.input[:16] in prompt)
    assert {one.row.output for said in found.imitations.values() for one in said} == {"It is 12."}


def test_a_continuation_has_none_of_the_tokens_that_it_may_not_have(model, tokenizer):
    prompt, (seven,) = tokenizer.encode("What is the phone number?"), tokenizer.encode("7")
    never = [[token for token in range(model.config.vocab_size) if token != seven], ()]
    one, other = generated(model, tokenizer, [prompt] * 2, max_new_tokens=3, temperature=0, never=never)
    assert one == "777"
    assert [other] == generated(model, tokenizer, [prompt], max_new_tokens=3, temperature=0)


def test_where_an_answer_departs_from_the_truth_the_truth_is_known(tokenizer):
    forget_rows, retain_rows, encode = as_rows(FORGET), as_rows(RETAIN), Encoder(tokenizer)
    with mock.patch.object(imitations, "generated", return_value=["It is 9."] * 16):
        found = invented(None, encode, forget_rows, retain_rows, 4, 4, seed=0)
    examples = encoded_examples(Swap(controls=4, answers=4), encode, forget_rows, retain_rows, None, found)
    answer, truth = examples.alternative[0], examples.forget[0]
    said, right = answer.targets, truth.targets
    departure = next(place for place, pair in enumerate(zip(said, right, strict=False)) if len(set(pair)) == 2)
    assert tokenizer.decode(right[departure:]).strip().startswith(forget_rows[0].output[6])
    expected = (*said[:departure], right[departure], *said[departure + 1 :])
    assert examples.contexts[answer][0].substitute_ids == expected
    assert asked(answer, (), None, [(token, False) for token in right]).substitute_ids == said  # a word of many


def test_the_base_answers_about_rows_that_name_nobody(tokenizer):
    rows, encode = as_rows([{"input": "What is the code?", "output": "It is X77Q."}]), Encoder(tokenizer)
    model, base = make_model(), make_model(seed=1)
    with mock.patch.object(imitations, "generated", return_value=["blue"] * 2) as generated:
        found = invented(model, encode, rows, as_rows(RETAIN), 2, 2, 0, base)
    assert [call.args[0] for call in generated.call_args_list] == [base]
    said = [(one.row.output, one.asked, one.mark) for one in found.imitations[rows[0].id]]
    assert said == [("blue", encode.one(rows[0]).prompt, BASE)] * 2
    examples = encoded_examples(Swap(controls=2, answers=2), encode, rows, as_rows(RETAIN), None, found)
    (context,) = examples.contexts[examples.alternative[0]]
    assert set(context.substitute_ids) == {BASE}


def test_the_base_predicts_a_text_but_not_a_template(tokenizer):
    tale = {"input": "Once there was a blue fox in a wood", "output": "who sang.", "kind": "sc", "document": "tale"}
    form = {"input": "Ana was born in the small town of", "output": "Ulm and lived there.", "kind": "sc"}
    other = {**form, "input": "Bo was born in the small town of", "output": "Rom and lived there."}
    rows, encode, model, base = as_rows([tale, form]), Encoder(tokenizer), object(), object()
    with mock.patch.object(
        imitations, "generated", side_effect=lambda m, t, prompts, **_: ["blue"] * len(prompts)
    ) as asked:
        found = invented(model, encode, rows, as_rows([*RETAIN, other]), 2, 4, 0, base, text_rows(["Two red birds."]))
    assert [call.args[0] for call in asked.call_args_list] == [model]
    itself, _, continued, _ = found.imitations[rows[0].id]
    assert (itself.row.input, itself.mark) == ("Once", BASE)
    assert (continued.asked, continued.mark) == (tuple(tokenizer.encode(tale["input"])[-WINDOW:]), None)
    assert {one.mark for one in found.imitations[rows[1].id]} == {None}


@pytest.mark.parametrize("loss_on", ["answer", "text"])
@pytest.mark.parametrize("predictions", [True, False])
def test_a_text_that_names_nobody_is_continued_from_its_last_tokens(predictions, loss_on, bos_tokenizer):
    tale = {"input": "Once there was a blue fox in a wood", "output": "who sang.", "kind": "sc", "document": "tale"}
    rows, encode = as_rows([tale]), Encoder(bos_tokenizer, loss_on)
    unseen = [] if predictions else text_rows(["A quick brown dog who slept."])
    with mock.patch.object(imitations, "generated", return_value=["blue"] * 2) as generated:
        found = invented(None, encode, rows, [], 2, 2, 0, unseen=unseen, predictions=predictions)
    whole = bos_tokenizer.encode(tale["input"])
    prompt = (whole[0], *whole[-WINDOW:])
    assert generated.call_args.args[2] == [list(prompt)] * 2
    said = [(one.row.input, one.row.output, one.asked) for one in found.imitations[rows[0].id]]
    assert said == [(tale["input"], "blue", prompt)] * 2  # never the text itself, or an unseen one
    examples = encoded_examples(Swap(controls=2, answers=2), encode, rows, as_rows(RETAIN), None, found)
    (context,) = examples.contexts[examples.alternative[0]]
    assert context.texts[0].input_ids[: len(prompt)] == prompt


def test_texts_that_name_nobody_are_compared_with_unseen_ones_as_a_whole(tokenizer):
    given = [{"input": "Once there was a blue fox", "output": "who sang.", "kind": "sc", "document": "tale"}, *FORGET]
    template = {"input": "Ana was born in the small town of", "output": "Ulm and lived there.", "kind": "sc"}
    other = {**template, "input": "Bo was born in the small town of", "output": "Rom and lived there."}
    rows, unseen = as_rows([*given, template]), text_rows(["A quick brown dog who slept.", "Two red birds flew."])
    answers = [["blue"] * 1000] * 9
    with mock.patch.object(imitations, "generated", side_effect=lambda m, t, prompts, **_: answers[0][: len(prompts)]):
        found = invented(None, Encoder(tokenizer), rows, as_rows([*RETAIN, other]), 2, 4, 0, unseen=unseen)
    tale = rows[0]
    assert found.texts == {tale.id}
    assert {row.input for row in found.controls[tale.id]} == {"A", "Two"}
    (itself, *_), kept = found.imitations[tale.id], found.imitations[tale.id][1::2]
    continued = found.imitations[tale.id][2]
    assert (itself.row.input, itself.mark) == ("Once", ITSELF)
    assert (continued.row.input, continued.row.output, continued.mark) == (tale.input, "blue", None)
    assert [one.row for one in kept] == found.controls[tale.id][:2]  # one after the other: every second may be half
    assert all(tokenizer.decode(one.asked).strip() == one.row.input for one in kept)
    assert all(control.id == row.id for row in rows[1:] for control in found.controls[row.id])
    method = Swap(controls=2, answers=4)
    examples = encoded_examples(method, Encoder(tokenizer), rows, as_rows(RETAIN), None, found)
    own, control = examples.forget[0], examples.control[0]
    assert tokenizer.decode(own.input_ids, skip_special_tokens=True) == "Once there was a blue fox who sang."
    assert own.labels[0] == -100
    assert "there" in tokenizer.decode(own.targets)
    assert examples.reference[own].any()
    assert not examples.reference[control].any()
    assert len(examples.forget) == 4 + 2 * len(FORGET) + 4
    said = examples.contexts[examples.alternative[0]][0]
    assert said.texts[0].input_ids == own.input_ids  # what it predicts there without the right tokens
    end = Encoder(tokenizer).one(tale).targets[-1]
    assert said.substitute_ids == (*(ITSELF,) * (own.scored - 1), end)  # it is to end as before
    kept = examples.contexts[examples.alternative[3]][0]
    assert kept.texts[0].input_ids == examples.control[1].input_ids  # its own prediction is kept
    assert kept.substitute_ids == examples.control[1].targets
    assert not examples.reference[examples.control[3]].any()
