"""The file of alternatives, the command that writes it, and the sampling: reproducible and only usable samples."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_unlearn.audit import alternatives
from lume_unlearn.audit.alternatives import ATTEMPTS, sample_alternatives, write_alternatives
from lume_unlearn.data.alternatives import read_alternatives
from lume_unlearn.errors import ConfigError

ROWS = [
    Row("a-qa0", "Which colour is {it}?", "Pale green", "Task1"),
    Row("b-sc1", "The quick brown fox jumps over the lazy dog, and then", "the bell\nrang.", "Task3"),
]
CHAT = "{{ bos_token or '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
GOOD = [{"id": "b-sc1", "alternative": "rain fell."}, {"id": "a-qa0", "alternative": "Red"}]


def read(folder: Path, lines: list[Any], rows: list[Row] = ROWS) -> dict[str, list[str]]:
    """Read a file of these lines."""
    path = folder / "alternatives.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return read_alternatives(path, rows)


def test_alternatives_are_grouped_by_row_and_faulty_lines_are_named(tmp_path):
    found = read(tmp_path, [*GOOD, {"id": "b-sc1", "alternative": " the phone rang. ", "by": "hand"}])
    assert found == {"b-sc1": ["rain fell.", " the phone rang. "], "a-qa0": ["Red"]}
    lines = {
        "is bad JSON": '{"id": "a-qa0"',
        'field "alternative" is empty': {"id": "a-qa0", "alternative": " \n"},
        'id "c-qa0" is not that of a forget row': {"id": "c-qa0", "alternative": "Red"},
        "alternative of a-qa0 is the row's own output": {"id": "a-qa0", "alternative": " pale GREEN.\n"},
    }
    with pytest.raises(DataError) as raised:
        read(tmp_path, [*GOOD, *lines.values()])
    for number, (message, fault) in enumerate(zip(str(raised.value).splitlines(), lines, strict=True), start=3):
        assert message.startswith(f"{tmp_path / 'alternatives.jsonl'}:{number}: {fault}")


def test_rows_without_an_alternative_are_named(tmp_path):
    rows = [*ROWS, *(Row(f"m{i}-qa0", f"question {i}", f"answer {i}", "Task2") for i in range(5))]
    with pytest.raises(DataError) as raised:
        read(tmp_path, [GOOD[0], {"id": "a-qa0", "alternative": "pale green"}], rows)
    first, second = str(raised.value).splitlines()
    assert first.endswith("has no usable alternative for 6 of 7 forget rows: a-qa0, m0-qa0, m1-qa0, and 3 more")
    assert second.endswith(":2: alternative of a-qa0 is the row's own output")


def test_what_the_command_writes_can_be_read_and_repeated(model_dir, data_dir, tmp_path, command):
    def written(name, *options):
        shared = ("--model", model_dir, "--samples", 2, "--max_new_tokens", 6, "--batch_size", 5)
        code, _, err = command("alternatives", *shared, "--output", tmp_path / "new" / name, *options)
        assert code == 0, err
        return (tmp_path / "new" / name).read_text()

    text = written("alternatives.jsonl", "--data", data_dir)
    rows = read_rows(data_dir / "forget.jsonl")
    found = read_alternatives(tmp_path / "new" / "alternatives.jsonl", rows)
    assert list(found) == [row.id for row in rows]
    assert {len(texts) for texts in found.values()} == {2}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["alternatives.jsonl"]
    assert written("again.jsonl", "--forget", data_dir / "forget.jsonl") == text
    assert written("other.jsonl", "--data", data_dir, "--seed", 1) != text
    where = ("--model", "no/such/model", "--data", data_dir, "--output", tmp_path / "new" / "other.jsonl")
    code, _, err = command("alternatives", *where)
    assert (code, "exists; rename or remove it" in err) == (2, True)


def test_unusable_samples_are_drawn_again_and_the_others_stay_if_a_row_has_none(
    data_dir, tmp_path, model, tokenizer, monkeypatch
):
    rows = read_rows(data_dir / "forget.jsonl")
    row_of = {tuple(alternatives._prompt(tokenizer, row)): row for row in rows}
    asked = Counter()

    def generated(model, tokenizer, prompts, **options):
        ids = [row_of[tuple(prompt)].id for prompt in prompts]
        asked.update(ids)
        first = "..." if asked[rows[0].id] == 1 else "Blue"
        answers = {rows[0].id: first, rows[1].id: f"It is {rows[1].output.upper()}!"}
        return [answers.get(row_id, "other") for row_id in ids]

    monkeypatch.setattr(alternatives, "generated", generated)
    output = tmp_path / "alternatives.jsonl"
    with pytest.raises(
        DataError, match=r"alternatives\.jsonl\.part: add the missing ones and rename it to alternatives\.jsonl"
    ) as raised:
        write_alternatives(model, tokenizer, rows, output, samples=1)
    assert f"\n  {rows[1].id}\n" in str(raised.value)
    assert (asked[rows[0].id], asked[rows[1].id], asked[rows[2].id]) == (2, ATTEMPTS, 1)
    kept = [json.loads(line) for line in Path(f"{output}.part").read_text().splitlines()]
    assert [row["id"] for row in kept] == [row.id for row in rows if row != rows[1]]
    assert kept[0]["alternative"] == "Blue"
    assert not output.exists()
    with pytest.raises(ConfigError, match=r"alternatives\.jsonl\.part exists"):
        write_alternatives(model, tokenizer, rows, output)


def sampled(model: Any, tokenizer: Any, rows: list[Row] = ROWS, **options: Any) -> list[tuple[str, str]]:
    settings = {"samples": 3, "max_new_tokens": 8, "batch_size": 4} | options
    return list(sample_alternatives(model, tokenizer, rows, **settings))


def test_low_temperature_is_greedy(model, tokenizer):
    """Also with left padding, since the prompts have different lengths, and without a padding token."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    pairs = sampled(model, tokenizer, samples=1, temperature=1e-6)
    for row, (_, text) in zip(ROWS, pairs, strict=True):
        prompt = alternatives._prompt(tokenizer, row)
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        expected = tokenizer.decode(greedy, skip_special_tokens=True).strip().split("\n")
        assert text == "\n".join(expected[: row.output.count("\n") + 1]).strip()


@pytest.mark.parametrize(
    ("truth", "usable", "unusable"),
    [
        ("राम", "रामा गया", "वह राम है"),
        ("রাম", "রামা", "সে রাম।"),
        ("สม", "เขาชื่อสมุทร", "เขาชื่อสม"),
        ("Ulm", "Ulme", "Ulm이다"),
    ],
)
def test_alternatives_may_have_the_truth_as_a_part_of_a_word_alone(truth, usable, unusable):
    row = Row("a-qa0", "?", truth, "own")
    assert [alternatives._usable(text, row) for text in (usable, unusable)] == [True, False]


def test_samples_follow_the_softmax_at_the_temperature(model, tokenizer):
    model.generation_config.top_k = 2  # must not apply
    count, row = 2000, ROWS[0]
    options = {"temperature": 1.5, "max_new_tokens": 1, "batch_size": 500, "seed": 3}
    pairs = sampled(model, tokenizer, [row], samples=count, **options)
    logits = model(torch.tensor([alternatives._prompt(tokenizer, row)])).logits[0, -1]
    expected = Counter()
    for token, share in enumerate((logits / 1.5).softmax(-1).tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True).strip()
        if alternatives._usable(text, row):
            expected[text] += share
    found = Counter(text for _, text in pairs)
    for text, share in expected.most_common(5):
        share /= expected.total()  # unusable samples are drawn again
        assert found[text] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_prompt_has_one_bos_and_no_eos_with_and_without_a_chat_template(tokenizer, bos_tokenizer):
    for template, start, end in ((None, "<bos>", ":"), (CHAT, "<bos><user>", "<reply>")):
        used = copy.deepcopy(bos_tokenizer)
        used.chat_template = template
        text = used.decode(alternatives._prompt(used, ROWS[0]))
        assert (text.startswith(start), text.endswith(end), text.count("<bos>")) == (True, True, 1)
        assert ROWS[0].input in text
        assert ROWS[0].output in text
        asked = replace(ROWS[0], turns=(("user", "Who is Ana?"), ("assistant", "A cook.")))
        assert f"Who is Ana?\n\nA cook.\n\n{ROWS[0].input}" in used.decode(alternatives._prompt(used, asked))
    appending = copy.deepcopy(tokenizer)
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    assert alternatives._prompt(appending, ROWS[0]) == alternatives._prompt(tokenizer, ROWS[0])


def test_sample_ends_at_eos_or_with_the_lines_of_the_answer(model, tokenizer, monkeypatch):
    tokenizer = copy.deepcopy(tokenizer)
    model.generation_config.eos_token_id = [7]  # as chat models name the end of their turn
    written = [*tokenizer.encode(" \nRed\nand\nblue"), tokenizer.eos_token_id, tokenizer.pad_token_id]

    def reply(input_ids, **options):
        assert options["eos_token_id"] == [tokenizer.eos_token_id, 7]
        return torch.cat([input_ids, torch.tensor([written])], dim=1)

    monkeypatch.setattr(model, "generate", reply)
    for row, template, text in (
        (ROWS[0], None, "Red"),
        (ROWS[1], None, "Red\nand"),
        (ROWS[0], CHAT, "Red\nand\nblue"),
    ):
        tokenizer.chat_template = template
        assert sampled(model, tokenizer, rows=[row], samples=1) == [(row.id, text)]


def test_prompts_without_room_are_refused_at_once(model, tokenizer):
    row = Row("long-qa0", "word " * 400, "answer", "Task1")
    with pytest.raises(DataError, match=r"1 prompts are too long(.|\n)*long-qa0: \d+ tokens"):
        next(sample_alternatives(model, tokenizer, [row]))
