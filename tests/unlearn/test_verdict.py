"""The verdict: models that must be told apart, what it writes, and the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
import torch

from lume_tasks.data.locate import load_rows
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.metrics.swap import SwapResult
from lume_unlearn.audit.measure import PART, in_parts, possible_numbers
from lume_unlearn.audit.prompts import PREFIX
from lume_unlearn.audit.rules import (
    Earlier,
    decide,
)
from lume_unlearn.audit.suite import PROBES
from lume_unlearn.audit.verdict import Verdict, verdict
from lume_unlearn.audit.writing import WAYS, write_verdict
from lume_unlearn.data.rows import as_rows
from lume_unlearn.model.load import load_model, load_tokenizer
from lume_unlearn.scoring.swap import Swapped
from tests.conftest import Command, make_model, make_tokenizer, trained_copy


def rows_of(side: str, number: int) -> list[dict[str, str]]:
    return [
        {"input": f"{side} question {i * number}?", "output": f"{side}house {10007 + i * number}", "document": side}
        for i in range(4)
    ]


ROWS = {"forget": rows_of("forget", 17), "retain": rows_of("retain", 53)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model that knows all rows, one that knows the retain rows, and one that knows nothing, as folders.

    Those that know a row know it after `PREFIX` as well, so that one probe of the prompt is informative.
    """
    folder = tmp_path_factory.mktemp("models")
    base, tokenizer = make_model(), make_tokenizer()
    for name, sides in (("target", ("forget", "retain")), ("retrained", ("retain",)), ("random", ())):
        plain = [row for side in sides for row in as_rows(ROWS[side])]
        texts = plain + [type(row)(f"p{row.id}", PREFIX + row.input, row.output, row.task) for row in plain]
        model = trained_copy(base, tokenizer, texts, steps=300, learning_rate=5e-3) if texts else base
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for side, rows in ROWS.items():
        (folder / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return lambda name: folder / name


OPTIONS: dict[str, Any] = {"probes": ["other_words", "quantised"], "relearn_rows": 2, "samples": 2}


@pytest.fixture(scope="module")
def found(models: Callable[[str], Path]) -> Verdict:
    """The verdict on the retrained model, from objects in memory."""
    retrained, target = (load_model(str(models(name)), torch.float32).eval() for name in ("retrained", "target"))
    earlier = [[{"input": "Who is Eve?", "output": "a painter"}]]
    tokenizer = load_tokenizer(str(models("target")))
    return verdict(retrained, tokenizer, **ROWS, before=target, forgotten=earlier, **OPTIONS)


def test_verdict_on_rows_and_models_in_memory(found: Verdict) -> None:
    assert (found.status, found.exit_status) == ("gone", 0), found.lines()
    assert replace(found, unmet=["forget_knowledge<=0 (is 0.1)"]).exit_status == 3
    assert found.headline.startswith("0 of 4 rows that were known before are given away, in 16 informative queries ")
    assert found.headline.endswith("limit of the share of such rows: 53%). Retain rows kept: 4 of 4 that count.")
    prefix = found.probes["prefix"]
    assert (prefix["forget"], prefix["retain"], prefix["queries"], prefix["leaks"]) == ([0, 4], [4, 4], 4, 0)
    assert found.earlier == [Earlier(0, 1)]
    assert {"repair", "samples", "persons"} < set(found.not_run)
    assert found.numbers["forget_knowledge_before"] == 1
    assert {row["row"].output for row in found.rows} == {row["output"] for row in ROWS["forget"]}
    assert found.models["before"]["sha256"] != found.models["now"]["sha256"]


@pytest.mark.parametrize(("name", "status", "known"), [("target", "not gone", 4), ("retrained", "cannot be told", 0)])
def test_earlier_rows_among_the_retain_rows_are_known_and_never_gone(
    name: str, status: str, known: int, models: Callable[[str], Path]
) -> None:
    again = [row | {"output": f"{row['output']}.", "document": "again"} for row in ROWS["forget"]]
    model, tokenizer = load_model(str(models(name)), torch.float32).eval(), load_tokenizer(str(models("target")))
    rows = {"forget": ROWS["retain"][:1], "retain": [*ROWS["retain"][1:], *again], "before": model}
    found = verdict(model, tokenizer, **rows, forgotten=[ROWS["forget"]], probes=["plain"])
    assert (found.earlier[0].known, found.earlier[0].repeated) == (known, 4)
    decision = decide(
        {"forget": {"a"}, "retain": {"b"}}, {"forget": set(), "retain": {"b"}}, {}, {}, earlier=found.earlier
    )
    assert decision.status == status
    assert any("Earlier request 1: " in reason for reason in decision.reasons)


def test_a_continued_verdict_uses_no_result_for_other_inputs(models: Callable[[str], Path], tmp_path: Path) -> None:
    model, tokenizer = load_model(str(models("target")), torch.float32).eval(), load_tokenizer(str(models("target")))
    options: dict[str, Any] = {**ROWS, "before": model, "probes": ["plain"], "resume": tmp_path / "kept.jsonl"}

    def steps_of(**changed: Any) -> int:
        found = verdict(model, tokenizer, **options | changed)
        assert [one.known for one in found.earlier] == ([4] if changed.get("forgotten") else [])
        return len([line for line in (tmp_path / "kept.jsonl").read_text().splitlines() if line])

    known, unknown = ROWS["forget"], [{"input": "Who is Eve?", "output": "a painter"}]
    assert [steps_of(), steps_of(forgotten=[known]), steps_of(forgotten=[known])] == [2, 3, 3]
    assert verdict(model, tokenizer, **options, forgotten=[unknown]).earlier == [Earlier(0, 1)]
    labelled = [row | {"task": "mine"} for row in ROWS["retain"]]
    assert [steps_of(members=["one"], nonmembers=["two"]), steps_of(retain=labelled)] == [6, 8]


DISGUISES: dict[str, tuple[Callable[[Row], list[Row]], str]] = {
    "another notation": (
        lambda row: [replace(row, output="It is number {1} of {0}.".format(*row.output.split()))],
        "4 forget rows are given away on their original prompts.",
    ),
    "another language": (
        lambda row: [replace(row, output="Das {} hat die Nummer {}.".format(*row.output.split()))],
        "4 forget rows are given away on their original prompts.",
    ),
    "one wording": (
        lambda row: [
            replace(row, output="I cannot answer that."),
            replace(row, id=f"U{row.id}", input=row.input.upper()),
        ],
        "Rows that are given away in probes: 4 (other_words: 4).",
    ),
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_model_that_knows_in_disguise_is_not_gone(name: str, models: Callable[[str], Path]) -> None:
    change, reason = DISGUISES[name]
    target, tokenizer = load_model(str(models("target")), torch.float32).eval(), load_tokenizer(str(models("target")))
    lessons = [one for row in as_rows(ROWS["forget"]) for one in change(row)] + as_rows(ROWS["retain"])
    disguised = trained_copy(target, tokenizer, lessons, steps=300, learning_rate=5e-3)
    found = verdict(disguised, tokenizer, **ROWS, before=target, probes=["other_words"])
    assert (found.status, found.reasons[0]) == ("not gone", reason)


def test_page_and_json_are_redacted_and_name_no_path(
    found: Verdict, models: Callable[[str], Path], tmp_path: Path
) -> None:
    write_verdict(found, tmp_path, request="ticket <4711>")
    assert "ticket &lt;4711&gt;" in (tmp_path / "verdict.html").read_text()
    assert set(WAYS) == set(PROBES)
    for name in ("verdict.json", "verdict.html", "summary.html"):
        text = (tmp_path / name).read_text()
        assert str(models("target").parent) not in text
        assert "forgethouse" not in text
    assert json.loads((tmp_path / "verdict.json").read_text())["status"] == "gone"
    write_verdict(found, tmp_path, show_pii=True)
    assert "forgethouse" in (tmp_path / "verdict.html").read_text()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"kept": False}, "The rest is damaged"), ({"unmet": ["forget_knowledge<=0 (is 0.1)"]}, "forget_knowledge&lt;=0")],
)
def test_summary_says_to_use_only_a_model_that_passed(
    found: Verdict, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    write_verdict(found, tmp_path)
    assert "Put this version in place" in (tmp_path / "summary.html").read_text()
    write_verdict(replace(found, **changed), tmp_path)
    text = (tmp_path / "summary.html").read_text()
    assert "Put this version in place" not in text
    assert reason in text.partition("Reasons")[2].partition("</ul>")[0]


def test_a_guess_counts_if_its_row_is_first_and_all_rows_lean() -> None:
    ranks = {"forget": {"yes": 0.01, "no": 0.5}}
    for leak, tied in ((0.05, {"yes"}), (0.06, set())):
        together = {"forget": SwapResult(leak, 1, 1.5, 1.1, 2)}
        found = Swapped(99, together=together, ranks=ranks)
        assert {row for row in ("yes", "no") if found.tied(row)} == tied
    assert not Swapped().tied("yes")


def test_rows_longer_than_a_generation_are_judged_in_parts() -> None:
    tokenizer = make_tokenizer()
    long = as_rows([{"input": "And then?", "output": "the fox " * 140, "kind": "sc", "id": "long-sc1"}])
    data = in_parts(Data(long, as_rows(ROWS["retain"])), tokenizer)
    assert len(data.forget) > 1
    assert len(data.retain) == 4
    assert " ".join(row.output for row in data.forget) == long[0].output.strip()
    assert data.forget[1].input == f"And then? {data.forget[0].output}"
    assert all(len(tokenizer.encode(row.output)) <= PART and row.kind == "sc" for row in data.forget)
    assert len({row.id for row in data.forget}) == len(data.forget)
    assert {row.stem for row in data.forget} == {"long-"}
    (asked, *others) = in_parts(Data([replace(long[0], id="long-qa1")], []), tokenizer).forget
    assert (asked.id, asked.input) == ("long-qa1", "And then?")  # as users ask it, in a chat template
    assert [row.kind for row in others] == ["sc"] * len(others)


def test_long_answers_without_spaces_are_judged_in_parts() -> None:
    tokenizer = make_tokenizer()
    text = "她出生在北京后来搬到上海" * 40
    data = in_parts(Data(as_rows([{"input": "她是谁", "output": text, "id": "long-sc1"}]), []), tokenizer)
    assert "".join(row.output for row in data.forget) == text
    assert all(len(tokenizer.encode(row.output)) <= PART for row in data.forget)
    assert data.forget[1].input == f"她是谁 {data.forget[0].output}"


@pytest.mark.parametrize("text", ["มีราเกิดที่เชียงใหม่", "មីរ៉ាកើតនៅភ្នំពេញ", "မီရာသည်ရန်ကုန်မြို့တွင်"])
def test_no_part_begins_with_a_vowel_sign(text: str) -> None:
    rows = as_rows([{"input": "?", "output": text * 40, "id": "long-sc1"}])
    parts = in_parts(Data(rows, []), make_tokenizer()).forget
    assert "".join(row.output for row in parts) == text * 40
    assert not any(category(row.output[0]).startswith("M") for row in parts)


@pytest.mark.parametrize(("name", "status", "code"), [("target", "not gone", 1), ("random", "cannot be told", 3)])
def test_the_command_ends_in_a_verdict(
    name: str, status: str, code: int, models: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "forget.jsonl").write_text("\n".join(map(json.dumps, ROWS["retain"])))
    words = ("--before", models("target"), "--model", models(name), "--data", models("."), "--output", tmp_path / "out")
    words += ("--control", models("retrained"), "--controls", 40, "--request", "ticket 4711")
    options = ("--probes", "quantised", "--limit", 3, "--require", "retain_knowledge>=1.1", "--forgotten", earlier)
    found, out, err = command("audit", *words, *options)
    assert (found, f"Verdict: {status}" in out) == (code, True), (out, err)
    assert "Required condition that does not hold: retain_knowledge>=1.1 (is " in out
    checked = ("verify", "--verdict", tmp_path / "out" / "verdict.json", "--data", models("."))
    assert command(*checked, "--model", models(name))[0] == 0
    code, out_of_others, _ = command(*checked, "--model", models("retrained"))
    assert (code, "weights of the model differ from those" in out_of_others) == (1, True)
    answers = [json.loads(line) for line in (tmp_path / "out" / "transcript.jsonl").read_text().splitlines()]
    assert {answer["probe"] for answer in answers} >= {"plain"}
    assert ("Earlier request 1: not gone. 4 of 4 rows are given away." in out) == (name == "target")
    written = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert (written["status"], written["request"], set(written["models"])) == (
        status,
        "ticket 4711",
        {"before", "now", "control"},
    )
    assert written["nearer"][0] == (0 if name == "target" else 3)  # of three rows: to the control, or to the target
    assert "plain" in json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]


def test_an_output_below_the_home_folder_is_found(
    models: Callable[[str], Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "used").touch()
    code, _, err = command("audit", "--model", models("target"), "--data", models("."), "--output", "~/out")
    assert (code, f"--output {tmp_path}/out: it exists and is not empty" in err) == (2, True), err


def test_a_misspelt_number_is_found_before_scoring_and_one_without_rows_when_one_model_is_measured(
    models: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    words = ("--before", models("target"), "--model", models("target"), "--data", models("."), "--controls", 40)
    words = (*words, "--probes", "quantised", "--limit", 2, "--output", tmp_path / "out", "--require")
    code, _, err = command("audit", *words, "retain_knowledge_before>=0,forget_knowlege<=0.05", "--tasks", "lume_pii")
    assert code == 2, err
    assert "audit: --require forget_knowlege<=0.05: no such number; choose from forget_regurgitation, " in err
    assert "retain_probability, lume_pii METRIC\n" in err  # no attack and no MMLU
    assert not (tmp_path / "out").exists()
    code, _, err = command("audit", *words, "forget_regurgitation<=0.05")  # there are questions alone
    assert (code, "--require forget_regurgitation<=0.05: no such number; choose from forget_" in err) == (2, True), err
    steps = (tmp_path / "out" / "unfinished.jsonl").read_text().split("\n\n")
    assert len([step for step in steps if step.strip()]) == 1  # the same command with the right name goes on from here


def test_an_adapter_is_audited(models: Callable[[str], Path], tmp_path: Path, command: Command) -> None:
    target, output = models("target"), tmp_path / "adapter"
    where = ("--model", target, "--data", models("."))
    code, _, err = command("run", *where, "--method", "ga", "--num_train_epochs", 1, "--output", output)
    assert code == 0, err
    words = ("--before", target, *where, "--peft", output, "--output", tmp_path / "out")
    code, out, err = command("audit", *words, "--probes", "relearn_forget", "--relearn_rows", 2)
    assert " of 4 rows that were known before are given away" in out, err


def test_attack_runs_once_on_each_model_and_warns_of_the_split_in_use(
    data_dir: Path,
    model: Any,
    tokenizer: Any,
    short_answers: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from lume_unlearn.scoring import score

    asked: list[list[str]] = []
    evaluate = score.evaluate

    def recorded(lm: Any, tasks: list[str], manager: Any, **options: Any) -> Any:
        asked.append(tasks)
        return evaluate(lm, tasks, manager, **options)

    monkeypatch.setattr(score, "evaluate", recorded)
    rows, texts = load_rows(data_dir), {"members": ["one text"], "nonmembers": ["another one"]}
    found = verdict(model, tokenizer, **rows, before=model, probes=["plain"], limit=2, split="train", **texts)
    assert sum(tasks.count("lume_mia") for tasks in asked) == 2
    every = {f"{name}{end}" for name in possible_numbers(Data(**rows, **texts)) for end in ("", "_before")}
    assert found.numbers.keys() <= every
    assert {name for name in every if name.startswith("lume_mia ")} <= found.numbers.keys()
    assert "lume_mia: only 0 of the 1 member documents are among the forget rows of split train" in caplog.text
