"""The verdict of `audit --before`: its rules by hand, and models that must be told apart."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lume_unlearn.errors import ConfigError
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.rules import decide, informative, is_known, unmet
from tests.conftest import Command, make_model, make_tokenizer

ROWS = {"a", "b", "c", "d"}
KNOWING = {"forget": ROWS, "retain": {"r", "s", "t", "u"}}
NOTHING: dict[str, set[str]] = {"forget": set(), "retain": set()}
FORGOT = {"forget": set[str](), "retain": KNOWING["retain"]}


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "known"),
    [
        ("qa", "1990-01-02", "She was born on 1990-01-02.", True),
        ("qa", "Ada", "Adam and others", False),
        ("qa", "river house", "The house on the river", False),
        ("qa", "Éva@x.org", "mail éva@x.org", True),
        ("qa", "...", "so ... yes", True),
        ("qa", "She was born in Velmora.", "She was born in Velmor.", True),
        ("qa", "She was born in Velmora.", "She was born in Harrow.", False),
        ("qa", "Jane Doe lives at 12 Elm Street, Springfield.", "Jane lives at 12 Elm Street, Springfield.", True),
        ("sc", "the fox jumps over", "the fox jumps", True),
        ("sc", "the fox jumps over", "a fox", False),
    ],
)
def test_what_counts_as_known(kind: str, truth: str, answer: str, known: bool) -> None:
    assert is_known(kind, truth, answer) == known


def test_models_are_told_apart() -> None:
    full, some, low = (dict.fromkeys(ROWS, (1.0, value)) for value in (1.0, 0.9, 0.2))
    unchanged = decide(KNOWING, KNOWING, {}, full)
    assert unchanged.status == "not gone"
    assert unchanged.reasons[0] == "4 forget rows are answered correctly."
    refusing = decide(KNOWING, FORGOT, {}, some)
    assert refusing.status == "not gone"
    assert refusing.reasons == ["4 of 4 answers are completed once their beginning is given."]
    collapsed = decide(KNOWING, NOTHING, {}, low)
    assert collapsed.status == "cannot be told"
    assert collapsed.reasons == ["The model is damaged: of 4 retain rows that it knew, it knows 0."]
    assert decide(KNOWING, FORGOT, {}, low).status == "gone"
    assert decide(FORGOT, FORGOT, {}, {}).status == "cannot be told"


def test_without_a_known_retain_row_a_collapsed_model_is_not_called_gone() -> None:
    found = decide({"forget": ROWS, "retain": set()}, NOTHING, {}, {})
    assert (found.status, "cannot be told from forgetting" in found.reasons[0]) == ("cannot be told", True)


def test_a_row_that_is_known_only_now_counts() -> None:
    before = {"forget": {"a"}, "retain": KNOWING["retain"]}
    assert decide(before, {"forget": {"b"}, "retain": KNOWING["retain"]}, {}, {}).status == "not gone"
    assert decide(NOTHING, KNOWING, {}, {}).status == "not gone"  # --before and --model were swapped


def test_a_row_that_is_known_in_a_probe_is_not_gone_unless_the_probe_is_not_informative() -> None:
    sampled = {"forget": {"b", "x"}, "retain": {"r", "s"}}
    found = decide(KNOWING, FORGOT, {"4-bit": (sampled, FORGOT)}, {})
    assert (found.status, found.reasons) == ("not gone", ["4-bit: 1 rows are answered correctly."])
    broken = sampled | {"retain": {"r"}}
    assert not informative(broken, FORGOT)
    found = decide(KNOWING, FORGOT, {"upper case": (broken, FORGOT)}, {})
    assert (found.status, found.uninformative) == ("gone", ["upper case"])


def test_requirements() -> None:
    numbers = {"forget_knowledge": 0.25, "retain_knowledge": 0.9}
    assert unmet("forget_knowledge<=0.3, retain_knowledge >= 0.9", numbers) == []
    assert unmet("forget_knowledge<=0.05", numbers) == ["forget_knowledge<=0.05 (is 0.250)"]
    assert unmet("lume_mia loss_auc>=0.3", numbers) == ["lume_mia loss_auc>=0.3 (there is no such number)"]
    with pytest.raises(ConfigError, match=r"--require forget_knowledge<0\.05: "):
        unmet("forget_knowledge<0.05", numbers)
    with pytest.raises(ConfigError, match="--require: only with --before"):
        AuditConfig("m", "o", require="forget_knowledge<=0.05")


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about one person and about others, a model that knows all of them, and one that knows the others."""
    folder = tmp_path_factory.mktemp("person")
    make_model().save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    for side, number in (("forget", 17), ("retain", 53)):
        rows = [
            {"input": f"{side} question {i * number}?", "output": f"{side} {i * number} river", "document": side}
            for i in range(4)
        ]
        (folder / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def models(person: Path) -> Callable[[str], Path]:
    from lume_unlearn.training.finetune import finetune
    from lume_unlearn.training.options import FinetuneConfig

    for rows in ("all", "retain"):
        options = {"rows": rows, "data": str(person), "epochs": 150, "batch_size": 4, "learning_rate": 5e-3}
        finetune(FinetuneConfig(str(person / "base"), str(person / rows), **options))  # type: ignore[arg-type]
    return lambda name: person / {"target": "all", "retrained": "retain", "random": "base"}[name]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("target", "not gone", 1), ("retrained", "gone", 0), ("random", "cannot be told", 3)],
)
def test_the_command_ends_in_a_verdict(
    name: str, status: str, code: int, person: Path, models: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "out"
    words = ("--before", models("target"), "--model", models(name), "--data", person, "--samples", 2)
    found, out, err = command("audit", *words, "--audits", "samples,other_words,repair", "--output", output)
    assert (found, f"Verdict: {status}" in out) == (code, True), (out, err)
    assert out.startswith(f"Known before: 4 of 4. Known now: {4 if name == 'target' else 0}")
    content = json.loads((output / "verdict.json").read_text())
    assert content["verdict"] == status
    assert content["numbers"]["forget_knowledge_before"] == 1
    page = (output / "verdict.html").read_text()
    assert "river" not in page  # redacted
    assert f"Verdict: {status}" in page


def test_an_adapter_is_audited(person: Path, models: Callable[[str], Path], tmp_path: Path, command: Command) -> None:
    target, output = models("target"), tmp_path / "adapter"
    code, _, err = command("run", "--model", target, "--data", person, "--method", "ga", "--output", output)
    assert code == 0, err
    words = ("--before", target, "--model", target, "--peft", output, "--data", person)
    code, out, err = command("audit", *words, "--audits", "relearn_forget", "--output", tmp_path / "out")
    assert "Known before: 4 of 4" in out, err


def test_requirement_and_earlier_request(
    person: Path, models: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    words = ("--before", models("target"), "--model", models("retrained"), "--data", person, "--audits", "plain")
    code, out, _ = command("audit", *words, "--require", "retain_knowledge>=1.1", "--output", tmp_path / "one")
    assert (code, "Required, but does not hold: retain_knowledge>=1.1 (is 1.000)" in out) == (1, True)
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "forget.jsonl").write_text((person / "retain.jsonl").read_text())
    code, out, _ = command("audit", *words, "--forgotten", earlier, "--show_pii", "--output", tmp_path / "two")
    assert (code, "Earlier request 1: 4 of 4 rows are answered correctly." in out) == (1, True), (out, _)
    assert "river" in (tmp_path / "two" / "verdict.html").read_text()
