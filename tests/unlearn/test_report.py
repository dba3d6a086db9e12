"""The page: what it shows, what it hides, and what hostile text cannot make it do."""

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lume_unlearn import cli
from lume_unlearn.report import plots
from lume_unlearn.report.page import render
from lume_unlearn.report.results import read_models
from lume_unlearn.report.sections import losses, page_data, roc_points

HOSTILE = (
    "</title><script>alert(1)</script>\x1b[31mred\x1b[0m\u202eevil\u200b\"'&\x00\ud800 <b onmouseover=x> {{7*7}} $x$"
)
SIDES = ("forget", "retain")
Write = Callable[..., Path]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes the time."""
    monkeypatch.setattr(plots, "png", lambda figure: b"PNG")


def scored_sample(number: int, kind: str, score: float, answer: str) -> dict[str, Any]:
    metric = {"sc": "forget_regurgitation", "qa": "forget_knowledge"}[kind]
    doc = {"id": f"p{number}{kind}0", "input": "Who is Ada Byron?", "output": "Ada, 900-51-4344"}
    hashes = {"prompt_hash": f"p{number}", "target_hash": "t"}
    return {"doc_id": number, "doc": doc, "filtered_resps": [answer], metric: score} | hashes


def full(level: float) -> dict[str, dict[str, Any]]:
    """Scores of every kind, at one level, with intervals."""
    names = [f"{side}_{kind}" for side in SIDES for kind in ("regurgitation", "knowledge")]
    rows = {f"{name}{end}": level for name in names for end in ("", "_low", "_high")}
    fields = ("birth_date", "ssn", "phone", "email", "address")
    kinds = ("exact", "partial", "in_text")
    pii = {f"{side}_{field}_{kind}": level for side in SIDES for field in fields for kind in kinds}
    attacks = {"loss_auc": 0.75, "loss_auc_stderr": 0.1, "loss_auc_low": 0.7, "loss_auc_high": 0.8}
    attacks |= {"loss_tpr_at_1": 0.5, "privleak": -12.0}
    return {
        **{f"lume_task{i}": rows for i in (1, 2, 3)},
        "lume_mia": attacks,
        "lume_pii": pii,
        "lume_memorization_task1": {f"{side}_exact_memorization": level for side in SIDES},
        "lume_score": rows | {"final_score": level, "task_aggregate": level, "mia_score": level, "mmlu": level},
    }


def mia_samples(members: list[float], others: list[float]) -> list[dict[str, Any]]:
    pairs = [(True, -loss) for loss in members] + [(False, -loss) for loss in others]
    return [{"doc_id": i, "doc": {"member": m}, "loss_auc": [m, score]} for i, (m, score) in enumerate(pairs)]


class Outline(HTMLParser):
    """Checks that elements are closed in order; collects names, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.add(name)
        self.attributes += attributes
        if name not in ("img", "meta", "br"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*paths: Path, show_pii: bool = False, title: str = "Title") -> str:
    return render(page_data(read_models(map(str, paths)), show_pii), title)


@pytest.mark.usefixtures("undrawn")
def test_the_attacks_say_whose_documents_they_look_at(write_results: Write) -> None:
    scores = {"lume_mia": {"loss_auc": 1.0, "members_unlearned": 0.25}}
    text = Outline(page_of(write_results("/m/a", scores))).text
    attacks = text.partition("Can an attacker tell what was in the training data?")[2]
    attacks, _, meanings = attacks.partition("What the numbers mean")
    assert "forget rows of the train split; validation and test hold none of them" in attacks
    assert "(--loss_on answer) hardly moves them" in attacks
    assert "members among forget rows" in attacks
    assert "0.250" in attacks
    assert "not asked to forget" in meanings


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("show_pii", [True, False])
def test_hostile_text_stays_text(write_results: Write, show_pii: bool) -> None:
    sample = scored_sample(0, "qa", 1.0, HOSTILE)
    sample["doc"] |= {"input": HOSTILE, "output": HOSTILE}
    scores = full(0.5) | {f"lume_{HOSTILE}": {HOSTILE: 0.5}}
    path = write_results(f"/m/{HOSTILE}", scores, {"lume_task1": [sample], "lume_mia": mia_samples([1.0], [2.0])})
    page = page_of(path, show_pii=show_pii, title=HOSTILE)
    outline = Outline(page)
    assert not outline.names & {"script", "b", "iframe", "object", "form", "link"}
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ud800-\udfff]", page)
    assert r"<script>alert(1)</script>\x1b[31mred" in outline.text  # shown, as text
    assert "{{7*7}}" in outline.text
    page.encode("utf-8")


def test_page_loads_nothing_from_elsewhere(write_results: Write) -> None:
    samples = {"lume_mia": mia_samples([1.0, 1.1], [2.0]), "lume_task2": [scored_sample(0, "qa", 1.0, "Ada")]}
    page = page_of(write_results("/m/a", full(0.5), samples))
    outline = Outline(page)
    links = [value or "" for name, value in outline.attributes if name in ("src", "href", "srcset", "action")]
    assert len(links) == 6  # the figures of three tasks, of the losses, of the ROC curve, and a link to the meanings
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in outline.attributes


@pytest.mark.usefixtures("undrawn")
def test_scores_have_intervals_and_missing_ones_a_dash(write_results: Write) -> None:
    page = page_of(write_results("/m/a", full(0.125)), write_results("/m/b", {"lume_score": {"final_score": 0.25}}))
    text = Outline(page).text
    assert "0.1250.125\u20130.125" in text  # a score and its interval below
    assert "0.7500.700\u20130.800" in text
    assert "_stderr" not in page
    rows = re.findall(r"<tr><th scope=\"row\">b</th>(.*?)</tr>", page)
    assert re.sub("<.*?>", " ", rows[0]).split()[:2] == ["0.250", "-"]


@pytest.mark.usefixtures("undrawn")
def test_sections_without_data_say_how_to_get_it(write_results: Write) -> None:
    bare = Outline(page_of(write_results("/m/a", {"lume_score": {"final_score": 0.5, "missing": "lume_mmlu"}}))).text
    for command in ("--tasks lume_task1,", "--tasks lume_mia --log_samples", "--model lume-hf", "--tasks lume_pii"):
        assert command in bare
    assert "--evaluate_every epoch" in bare
    assert "No final score of a: these tasks were not scored in full or have no value: lume_mmlu." in bare
    samples = {"lume_mia": mia_samples([1.0], [2.0]), "lume_task1": [scored_sample(0, "sc", 0.0, "x")]}
    whole = Outline(page_of(*(write_results(f"/m/run/checkpoint-{i}", full(0.5), samples) for i in (1, 2)))).text
    assert "Left out" not in whole
    assert "None." in whole  # no leaks


@pytest.mark.usefixtures("undrawn")
def test_attack_on_documents_that_were_not_unlearned_has_a_warning(write_results: Write) -> None:
    paths = [write_results(f"/m/{share}", {"lume_mia": {"members_unlearned": share}}) for share in (0.25, 1.0)]
    text = Outline(page_of(*paths)).text
    assert "0.25: 25% of the attack's member documents are among the forget rows of its split." in text
    assert "1.0: 100%" not in text


@pytest.mark.usefixtures("undrawn")
def test_personal_data_is_redacted_unless_asked_for(write_results: Write) -> None:
    answer = "ada@byron.org 900-51-4344 ADA"
    samples = [scored_sample(0, "qa", 1.0, answer), scored_sample(1, "sc", 0.5, answer)]
    path = write_results("/m/a", full(0.5), {"lume_task2": samples})
    redacted, shown = (Outline(page_of(path, show_pii=choice)).text for choice in (False, True))
    assert not re.search("ada|byron|900|4344", redacted.lower())
    assert "Who is ••• •••" in redacted
    assert "This page shows personal data" not in redacted
    assert answer in shown
    assert "Who is Ada Byron?" in shown
    assert "This page shows personal data" in shown


def test_command_writes_the_page_and_its_figures(
    write_results: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {"lume_mia": mia_samples([1.0, 1.5], [2.0, 0.5])}
    paths = [write_results(f"/m/run/checkpoint-{i}", full(i / 4), samples) for i in (1, 2)]
    paths.append(write_results("/m/a", full(0.5)))
    output = tmp_path / "new" / "my.html"
    assert cli.main(["report", *map(str, paths), "--output", str(output), "--title", "Mine"]) == 0
    page = output.read_text(encoding="utf-8")
    assert "<title>Mine</title>" in page
    figures = sorted(path.name for path in (tmp_path / "new" / "my_files").iterdir())
    assert figures == [
        "loss1_run-checkpoint-1.png",
        "loss2_run-checkpoint-2.png",
        "roc_loss.png",
        "tradeoff_lume_task1.png",
        "tradeoff_lume_task2.png",
        "tradeoff_lume_task3.png",
        "training1_1.png",
        "training1_2.png",
    ]
    assert page.count("<img ") == len(figures)
    assert f"{len(figures)} pictures" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("output", ["file/x.html", "."])
def test_page_that_cannot_be_written_is_an_error(
    write_results: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:
    path = write_results("/m/a", full(0.5))
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(path), "--output", output]) == 1
    assert f"--output {output}: cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_scores_that_cannot_be_compared_have_a_warning(write_results: Write) -> None:
    splits = ("train", "validation")
    one, two = (write_results(f"/m/{split}", full(0.5), metadata={"lume_split": split}) for split in splits)
    text = Outline(page_of(one, two)).text
    assert "Not all of these scores can be compared." in text
    assert "The rows are of different splits. train: train; validation: validation." in text
    assert "can be compared" not in Outline(page_of(one)).text


def test_losses_and_rates_are_those_of_the_samples() -> None:
    members, nonmembers = losses(mia_samples([1.0, 2.0], [1.5, 3.0])) or ([], [])
    assert (members, nonmembers) == ([1.0, 2.0], [1.5, 3.0])
    # rising losses: member 1, other 1.5, member 2, other 3
    assert roc_points(members, nonmembers) == ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    assert roc_points([0.0], [float("inf")]) == ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "samples", [mia_samples([1.0], []), mia_samples([1.0], [float("nan")]), []], ids=["one class", "NaN", "none"]
)
def test_models_without_the_losses_of_both_classes_are_left_out(samples: list[dict[str, Any]]) -> None:
    assert losses(samples) is None


def test_report_and_card_do_not_import_torch() -> None:
    code = "import sys, lume_unlearn.report.page, lume_unlearn.report.card; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
