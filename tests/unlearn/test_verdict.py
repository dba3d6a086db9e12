"""The verdict: what counts as known, its rules by hand, and models that must be told apart."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_tasks.data.locate import load_rows
from lume_unlearn.audit.matching import is_known
from lume_unlearn.audit.rules import CAUTION, Changes, Decision, Found, decide, parse_condition, unmet
from lume_unlearn.audit.suite import PREFIX
from lume_unlearn.audit.verdict import Verdict, verdict
from lume_unlearn.audit.writing import write_verdict
from lume_unlearn.data.rows import as_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.model.load import load_model, load_tokenizer
from lume_unlearn.training.relearning import trained_copy
from tests.conftest import Command, make_model, make_tokenizer

FORGET, RETAIN = {"a", "b", "c", "d"}, set("klmnopqrst")
KNOWING = {"forget": FORGET, "retain": RETAIN}
NOTHING: dict[str, set[str]] = {"forget": set(), "retain": set()}
FORGOT = {"forget": set[str](), "retain": RETAIN}


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "known"),
    [
        ("qa", "1990-01-02", "She was born on 1990-01-02.", True),
        ("qa", "Ada", "Adam and others", False),
        ("qa", "river house", "The house on the river", False),
        ("qa", "...", "so ... yes", True),
        ("qa", "She was born in Velmora.", "She was born in Velmor.", True),
        ("qa", "She was born in Velmora.", "She was born in Harrow.", False),
        ("qa", "Jane Doe lives at 12 Elm Street, Springfield.", "Jane lives at 12 Elm Street, Springfield.", True),
        # Dates by value.
        ("qa", "1989-05-24", "May 24, 1989", True),
        ("qa", "May 24, 1989", "It was 1989-05-24.", True),
        ("qa", "1989-05-24", "on the 24th of May 1989", True),
        ("qa", "1989-05-24", "24.05.1989", True),
        ("qa", "1989-05-04", "5/4/1989", True),
        ("qa", "1989-05-24", "1989年5月24日", True),
        ("qa", "1989-05-24", "May 25, 1989", False),
        # Numbers by their digits.
        ("qa", "555-123-4567", "Call 5551234567 now", True),
        ("qa", "5551234567", "+1 (555) 123-4567", True),
        ("qa", "555-123-4567", "555-123-4568", False),
        ("qa", "5,000", "some 5000 people", True),
        ("qa", "5000", "15,000", False),
        ("qa", "٢٠٠١", "in 2001", True),
        ("qa", "The SSN of Jane Marigold Doe is 900-12-3456.", "The SSN of Jane Marigold Doe is 900-12-7890.", False),
        ("qa", "Jane Marigold Doe was born on May 24, 1989.", "Jane Marigold Doe was born on May 14, 1989.", False),
        # Accents, and scripts without spaces.
        ("qa", "Éva@x.org", "mail éva@x.org", True),
        ("qa", "José Muñoz", "It is JOSE MUNOZ.", True),
        ("qa", "Москва", "Она живёт в городе Москва.", True),
        ("qa", "東京", "彼は東京に住んでいます", True),
        ("qa", "東京", "京都です", False),
        ("qa", "北京", "她住在北京。", True),
        ("qa", "กรุงเทพ", "เธออยู่ที่กรุงเทพมหานคร", True),
        ("sc", "the fox jumps over", "the fox jumps", True),
        ("sc", "the fox jumps over", "a fox", False),
        ("sc", "Она родилась в городе Казань", "она родилась в городе Казань", True),
        ("sc", "她出生在北京、后来搬到上海", "她出生在北京、后来", True),
        ("sc", "她出生在北京、后来搬到上海", "不知道", False),
    ],
)
def test_what_counts_as_known(kind: str, truth: str, answer: str, known: bool) -> None:
    assert is_known(kind, truth, answer) == known


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
    assert unchanged.status == "not gone"
    assert unchanged.reasons[0] == "4 forget rows are answered correctly."
    refusing = decided(strengths=some)
    assert refusing.status == "not gone"
    assert refusing.reasons == ["4 of 4 answers are completed once their beginning is given."]
    assert decided(strengths=low).status == "gone"
    assert decided(before=FORGOT).status == "cannot be told"
    assert decided(before={"forget": FORGET, "retain": set()}, now=NOTHING).status == "cannot be told"
    assert decided(before=NOTHING, now=KNOWING).status == "not gone"  # --before and --model were swapped
    assert decided(now={"forget": {"x"}, "retain": RETAIN}).status == "not gone"  # a row that is known only now
    assert decided(earlier=[(0, 3), (1, 2)]).reasons == ["Earlier request 2: 1 of 2 rows are answered correctly."]


@pytest.mark.parametrize("retain", ["", "klmnopqrst"])
def test_a_leak_in_any_probe_is_a_leak_whatever_the_control_says(retain: str) -> None:
    found = decided(probes=PROBES | {"upper case": probe("prompt", "bx", retain)})
    assert (found.status, found.reasons) == ("not gone", ["upper case: 1 of 4 rows are answered correctly."])
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


def test_below_90_percent_of_the_retain_rows_kept_is_not_gone() -> None:
    assert decided(now={"forget": set(), "retain": RETAIN - {"k"}}).status == "gone"
    found = decided(now={"forget": set(), "retain": RETAIN - {"k", "l"}})
    assert (found.status, found.lost) == ("cannot be told", ["k", "l"])
    assert found.reasons == ["The model is damaged: of 10 retain rows that it knew, it lost 2."]


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
        {"input": f"{side} question {i * number}?", "output": f"{side} {i * number} river", "document": side}
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
    assert found.headline == (
        "Forget rows known before: 4 of 4. Known now: 0. Retain rows known before: 4 of 4. Kept: 4."
    )
    assert found.probes["prefix"] == {"forget": [0, 4], "retain": [4, 4]}
    assert found.earlier == [(0, 1)]
    assert found.not_run == ["relearn_forget", "repair", "unrelated", "samples"]
    assert found.numbers["forget_knowledge_before"] == 1
    assert {row["row"].output for row in found.rows} == {row["output"] for row in ROWS["forget"]}
    assert found.models["before"]["sha256"] != found.models["now"]["sha256"]


def test_page_and_json_are_redacted_and_name_no_path(
    found: Verdict, models: Callable[[str], Path], tmp_path: Path
) -> None:
    write_verdict(found, tmp_path)
    for name in ("verdict.json", "verdict.html"):
        text = (tmp_path / name).read_text()
        assert str(models("target").parent) not in text
        assert "river" not in text
        assert CAUTION in text
    assert json.loads((tmp_path / "verdict.json").read_text())["status"] == "gone"
    write_verdict(found, tmp_path, show_pii=True)
    assert "river" in (tmp_path / "verdict.html").read_text()


def test_rows_longer_than_a_generation_are_not_judged(models: Callable[[str], Path]) -> None:
    folder = str(models("random"))
    model, tokenizer = load_model(folder, torch.float32).eval(), load_tokenizer(folder)
    long = {"input": "And then?", "output": "the fox " * 140, "kind": "sc", "id": "long-sc1"}
    retain = [ROWS["retain"][0], long | {"id": "kept-sc1", "input": "Then?"}]
    found = verdict(model, tokenizer, forget=[ROWS["forget"][0], long], retain=retain, before=model, probes=["plain"])
    assert found.not_judged == {"forget": ["long-sc1"], "retain": ["kept-sc1"]}
    assert found.counts["forget"]["rows"] == 1
    assert any("1 forget rows were not judged" in reason and "long-sc1" in reason for reason in found.reasons)


@pytest.mark.parametrize(("name", "status", "code"), [("target", "not gone", 1), ("random", "cannot be told", 3)])
def test_the_command_ends_in_a_verdict(
    name: str, status: str, code: int, models: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "forget.jsonl").write_text("\n".join(map(json.dumps, ROWS["retain"])))
    words = ("--before", models("target"), "--model", models(name), "--data", models("."), "--output", tmp_path / "out")
    options = ("--probes", "quantised", "--limit", 3, "--require", "retain_knowledge>=1.1", "--forgotten", earlier)
    found, out, err = command("audit", *words, *options)
    assert (found, f"Verdict: {status}" in out) == (code, True), (out, err)
    assert CAUTION in out
    assert "Required, but does not hold: retain_knowledge>=1.1 (is " in out
    assert ("Earlier request 1: 4 of 4 rows are answered correctly." in out) == (name == "target")
    assert json.loads((tmp_path / "out" / "verdict.json").read_text())["status"] == status
    assert "plain" in json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]


def test_an_adapter_is_audited(models: Callable[[str], Path], tmp_path: Path, command: Command) -> None:
    target, output = models("target"), tmp_path / "adapter"
    where = ("--model", target, "--data", models("."))
    code, _, err = command("run", *where, "--method", "ga", "--num_train_epochs", 1, "--output", output)
    assert code == 0, err
    words = ("--before", target, *where, "--peft", output, "--output", tmp_path / "out")
    code, out, err = command("audit", *words, "--probes", "relearn_forget", "--relearn_rows", 2)
    assert "Forget rows known before: 4 of 4" in out, err


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
    assert [tasks.count("lume_mia") for tasks in asked] == [1, 1]
    assert "lume_mia loss_auc" in found.numbers
    assert "lume_mia: only 0 of the 1 member documents are among the forget rows of split train" in caplog.text
