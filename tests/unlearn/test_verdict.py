"""The verdict: what counts as known, its rules by hand, and models that must be told apart."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_tasks.data.locate import load_rows
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.metrics.swap import SwapResult
from lume_unlearn.audit.measure import PART, in_parts
from lume_unlearn.audit.prompts import PREFIX
from lume_unlearn.audit.rules import (
    Changes,
    Decision,
    Earlier,
    Found,
    Swaps,
    decide,
    parse_condition,
    unmet,
    upper_limit,
)
from lume_unlearn.audit.suite import PROBES as ALL_PROBES
from lume_unlearn.audit.verdict import Verdict, verdict
from lume_unlearn.audit.writing import WAYS, write_verdict
from lume_unlearn.data.rows import as_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.load import load_model, load_tokenizer
from lume_unlearn.training.relearning import trained_copy
from tests.conftest import Command, make_model, make_tokenizer

FORGET, RETAIN = {"a", "b", "c", "d"}, set("klmnopqrst")
KNOWING = {"forget": FORGET, "retain": RETAIN}
NOTHING: dict[str, set[str]] = {"forget": set(), "retain": set()}
FORGOT = {"forget": set[str](), "retain": RETAIN}


def probe(changes: Changes, forget: str = "", retain: str = "klmnopqrst") -> Found:
    return Found(changes, {"forget": set(forget), "retain": set(retain)}, KNOWING)


PROBES = {"prefix": probe("prompt"), "4-bit": probe("weights")}


def decided(
    before: Any = KNOWING, now: Any = FORGOT, probes: Any = PROBES, strengths: Any = None, **options: Any
) -> Decision:
    return decide(before, now, probes, strengths or {}, **options)


def test_models_are_told_apart() -> None:
    full, some, low = (dict.fromkeys(FORGET, (1.0, value)) for value in (1.0, 0.9, 0.2))
    unchanged = decided(now=KNOWING, strengths=full)
    assert (unchanged.status, unchanged.reasons[0]) == ("not gone", "4 forget rows are given away as asked.")
    refusing = decided(strengths=some)
    assert refusing.status == "not gone"
    assert refusing.reasons == ["4 of 4 answers are completed from about as much of their beginning as before."]
    assert decided(strengths=low).status == "gone"
    assert decided(before=FORGOT).status == "cannot be told"
    assert decided(before={"forget": FORGET, "retain": set()}, now=NOTHING).status == "cannot be told"
    assert decided(before=NOTHING, now=KNOWING).status == "not gone"  # --before and --model were swapped
    assert decided(now={"forget": {"x"}, "retain": RETAIN}).status == "not gone"  # a row that is known only now
    assert decided(earlier=[Earlier(0, 3), Earlier(1, 2)]).reasons == ["Earlier request 2: 1 of 2 rows are given away."]


@pytest.mark.parametrize("retain", ["", "klmnopqrst"])
def test_a_leak_in_any_probe_is_a_leak_whatever_the_control_says(retain: str) -> None:
    found = decided(probes=PROBES | {"upper case": probe("prompt", "b", retain)})
    assert (found.status, found.reasons) == ("not gone", ["Rows that are given away in probes: 1 (upper case: 1)."])
    assert found.uninformative == ([] if retain else ["upper case"])


@pytest.mark.parametrize(
    ("probes", "missing"),
    [
        ({}, ["prompt", "weights"]),
        ({"prefix": probe("prompt")}, ["weights"]),
        ({"8-bit": probe("weights"), "leak@2": probe("sampling")}, ["prompt"]),
        ({"8-bit": probe("weights"), "prefix": probe("prompt", retain="klmn")}, ["prompt"]),  # not informative
    ],
)
def test_gone_needs_an_informative_probe_of_the_prompt_and_of_the_weights(
    probes: dict[str, Found], missing: list[str]
) -> None:
    found = decided(probes=probes)
    assert found.status == "cannot be told"
    assert len(found.reasons) == len(missing)
    assert all(f"No probe that changes the {one} " in text for one, text in zip(missing, found.reasons, strict=True))


def test_the_rest_has_an_answer_of_its_own() -> None:
    assert decided(now={"forget": set(), "retain": RETAIN - {"k"}}).kept
    found = decided(now={"forget": set(), "retain": RETAIN - {"k", "l"}})
    assert (found.status, found.kept, found.lost) == ("gone", False, ["k", "l"])
    assert decided(now={"forget": set(), "retain": RETAIN - {"k", "l"}}, keep=0.8).kept
    assert decided(now=NOTHING).status == "cannot be told"


TARGET, OTHERS = SwapResult(0.0001, 1, 4000, 2000, 8000), SwapResult(0.4, 0.6, 1.02, 0.9, 1.2)


@pytest.mark.parametrize(
    ("now", "status", "words"),
    [
        (OTHERS, "gone", "No row is given away"),
        (replace(OTHERS, leak=0.002, factor=2.5, low=1.5, high=4), "not gone", "tied to the persons"),
        (replace(OTHERS, leak=0.002, factor=1.5, low=1.1, high=2), "cannot be told", "a little unlike invented ones"),
        (replace(OTHERS, avoided=0.002, factor=0.3), "not gone", "avoids the right answers"),
        (replace(OTHERS, avoided=0.002, factor=0.7), "cannot be told", "a little unlike invented ones"),
        (replace(OTHERS, high=3.0), "cannot be told", "too coarse"),
    ],
)
def test_the_swap_test_decides(now: SwapResult, status: str, words: str) -> None:
    blind = {"prefix": probe("prompt", retain=""), "4-bit": probe("weights")}
    found = decided(probes=blind, swaps=Swaps(TARGET, now, TARGET))
    assert (found.status, words in found.reasons[0]) == (status, True)


def test_the_bound_is_half_of_what_the_target_shows() -> None:
    weak = SwapResult(0.01, 1, 1.69, 1.4, 2)  # answers that do not depend much on the name: the bound is 1.3
    for factor, status in ((1.4, "not gone"), (1.2, "cannot be told")):
        now = SwapResult(0.01, 1, factor, 1.01, 1.5)
        assert decided(swaps=Swaps(weak, now, TARGET)).status == status
    for high, status in ((1.95, "gone"), (2.05, "cannot be told")):
        assert decided(swaps=Swaps(weak, replace(OTHERS, low=0.8, high=high), TARGET)).status == status


def test_the_swap_test_is_no_evidence_without_its_positive_controls() -> None:
    blind = {"prefix": probe("prompt", retain=""), "4-bit": probe("weights")}
    for swaps in (Swaps(OTHERS, OTHERS, TARGET), Swaps(TARGET, OTHERS, OTHERS)):
        assert decided(probes=blind, swaps=swaps).status == "cannot be told"
    tied = replace(OTHERS, leak=0.002, factor=2.5, low=1.5, high=4.0)
    assert decided(swaps=Swaps(TARGET, tied, TARGET, control=tied)).status != "not gone"
    assert decided(swaps=Swaps(TARGET, TARGET, TARGET, control=tied)).status == "not gone"


def test_guesses_and_what_a_control_knows_are_no_evidence() -> None:
    known = {"forget": {"a"}, "retain": RETAIN}
    assert decided(now=known).status == "not gone"
    assert decided(now=known, excused={"a"}).status == "cannot be told"
    assert decided(now=known, excused={"a"}, swaps=Swaps(TARGET, OTHERS, TARGET)).status == "gone"
    assert decided(excused={"a"}).status == "gone"
    assert decided(excused=FORGET).status == "cannot be told"


def test_one_person_of_many_and_names_of_another_kind() -> None:
    assert decided(swaps=Swaps(TARGET, OTHERS, TARGET, persons=1)).status == "not gone"
    tied = replace(OTHERS, leak=0.002, factor=2.1, low=1.1, high=3.9)
    assert decided(swaps=Swaps(TARGET, tied, TARGET)).status == "not gone"
    assert decided(swaps=Swaps(TARGET, tied, TARGET, matched=False)).status == "cannot be told"
    assert decided(swaps=Swaps(TARGET, replace(tied, low=3.0, high=9.0), TARGET, matched=False)).status == "not gone"


@pytest.mark.parametrize(("leaks", "queries", "limit"), [(0, 12, 0.221), (0, 148, 0.020), (1, 12, 0.339), (3, 3, 1)])
def test_upper_limit(leaks: int, queries: int, limit: float) -> None:
    assert upper_limit(leaks, queries) == pytest.approx(limit, abs=5e-4)


def test_requirements() -> None:
    numbers = {"forget_knowledge": 0.25, "retain_knowledge": 0.9}
    assert unmet(["forget_knowledge<=0.3", "retain_knowledge >= 9e-1"], numbers) == []
    assert unmet(["forget_knowledge<=0.05"], numbers) == ["forget_knowledge<=0.05 (is 0.250)"]
    assert unmet(["lume_mia loss_auc>=0.3"], numbers) == ["lume_mia loss_auc>=0.3 (there is no such number)"]
    assert parse_condition("forget_knowledge<=1e-3") == ("forget_knowledge", "<=", 0.001)
    for wrong in ("forget_knowledge<0.05", "a<=1.2.3", "a<=.", "a<=nan"):
        with pytest.raises(ConfigError, match="--require "):
            parse_condition(wrong)


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
        model = trained_copy(base, tokenizer, texts, epochs=100, learning_rate=5e-3) if texts else base
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
    assert found.headline.startswith("0 of 4 rows that were known before are given away, in 16 queries that ")
    assert found.headline.endswith("one would have). Retain rows kept: 4 of 4 that count.")
    prefix = found.probes["prefix"]
    assert (prefix["forget"], prefix["retain"], prefix["queries"], prefix["leaks"]) == ([0, 4], [4, 4], 4, 0)
    assert found.earlier == [Earlier(0, 1)]
    assert {"repair", "samples", "persons"} < set(found.not_run)
    assert found.numbers["forget_knowledge_before"] == 1
    assert {row["row"].output for row in found.rows} == {row["output"] for row in ROWS["forget"]}
    assert found.models["before"]["sha256"] != found.models["now"]["sha256"]


DISGUISES: dict[str, tuple[Callable[[Row], list[Row]], str]] = {
    "another notation": (
        lambda row: [replace(row, output="It is number {1} of {0}.".format(*row.output.split()))],
        "4 forget rows are given away as asked.",
    ),
    "another language": (
        lambda row: [replace(row, output="Das {} hat die Nummer {}.".format(*row.output.split()))],
        "4 forget rows are given away as asked.",
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
    disguised = trained_copy(target, tokenizer, lessons, epochs=60, learning_rate=5e-3)
    found = verdict(disguised, tokenizer, **ROWS, before=target, probes=["other_words"])
    assert (found.status, found.reasons[0]) == ("not gone", reason)


def test_page_and_json_are_redacted_and_name_no_path(
    found: Verdict, models: Callable[[str], Path], tmp_path: Path
) -> None:
    write_verdict(found, tmp_path, request="ticket <4711>")
    assert "ticket &lt;4711&gt;" in (tmp_path / "verdict.html").read_text()
    assert set(WAYS) == set(ALL_PROBES)
    for name in ("verdict.json", "verdict.html", "summary.html"):
        text = (tmp_path / name).read_text()
        assert str(models("target").parent) not in text
        assert "forgethouse" not in text
    assert json.loads((tmp_path / "verdict.json").read_text())["status"] == "gone"
    write_verdict(found, tmp_path, show_pii=True)
    assert "forgethouse" in (tmp_path / "verdict.html").read_text()


def test_rows_longer_than_a_generation_are_judged_in_parts() -> None:
    tokenizer = make_tokenizer()
    long = as_rows([{"input": "And then?", "output": "the fox " * 140, "kind": "sc", "id": "long-sc1"}])
    data = in_parts(Data(long, as_rows(ROWS["retain"])), tokenizer)
    assert len(data.forget) > 1
    assert len(data.retain) == 4
    assert " ".join(row.output for row in data.forget) == long[0].output
    assert data.forget[1].input == f"And then? {data.forget[0].output}"
    assert all(len(tokenizer.encode(row.output)) <= PART and row.kind == "sc" for row in data.forget)
    assert len({row.id for row in data.forget}) == len(data.forget)
    assert {row.stem for row in data.forget} == {"long-"}


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
    assert "Required, but does not hold: retain_knowledge>=1.1 (is " in out
    checked = ("verify", "--verdict", tmp_path / "out" / "verdict.json", "--data", models("."))
    assert command(*checked, "--model", models(name))[0] == 0
    code, out_of_others, _ = command(*checked, "--model", models("retrained"))
    assert (code, "weights of the model are not those" in out_of_others) == (1, True)
    answers = [json.loads(line) for line in (tmp_path / "out" / "transcript.jsonl").read_text().splitlines()]
    assert {answer["probe"] for answer in answers} >= {"plain"}
    assert ("Earlier request 1: no longer gone. 4 of 4 rows are given away." in out) == (name == "target")
    written = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert (written["status"], written["request"], set(written["models"])) == (
        status,
        "ticket 4711",
        {"before", "now", "control"},
    )
    assert written["nearer"][0] == (0 if name == "target" else 3)  # of three rows: to the control, or to the target
    assert "plain" in json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]


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
    assert "lume_mia loss_auc" in found.numbers
    assert "lume_mia: only 0 of the 1 member documents are among the forget rows of split train" in caplog.text
