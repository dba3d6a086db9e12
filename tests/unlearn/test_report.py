"""The page: what it shows, what it hides, and what hostile text cannot make it do."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lume_unlearn import cli
from lume_unlearn.report import plots
from lume_unlearn.report.html import Html, join, tag, visible
from lume_unlearn.report.page import build_report
from lume_unlearn.report.results import read_models

HOSTILE = "<script>alert(1)</script>\x1b[31mred\x1b[0m\u202eevil\u200b\"'&\x00\ud800 <b onmouseover=x> $x$"
SIDES = ("forget", "retain")
Write = Callable[..., Path]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes the time."""
    monkeypatch.setattr(plots, "png", lambda figure: b"PNG")


def scored_sample(number: int, kind: str, side: str, score: float, answer: str) -> dict[str, Any]:
    metric = {"sc": "regurgitation", "qa": "knowledge"}[kind]
    doc = {"id": f"p{number}{kind}0", "input": "Who is Ada Byron?", "output": "Ada, 900-51-4344", "side": side}
    hashes = {"prompt_hash": f"p{number}", "target_hash": "t"}
    return {
        "doc_id": number,
        "doc": doc | {"kind": kind},
        "filtered_resps": [answer],
        f"{side}_{metric}": score,
    } | hashes


def full(level: float) -> dict[str, dict[str, Any]]:
    """Scores of every kind, at one level, with intervals."""
    names = [f"{side}_{kind}" for side in SIDES for kind in ("regurgitation", "knowledge")]
    rows = {f"{name}{end}": level for name in names for end in ("", "_low", "_high")}
    pii = {
        f"{side}_{field}_{kind}": level
        for side in SIDES
        for field in ("birth_date", "ssn", "phone", "email", "address")
        for kind in ("exact", "partial", "in_text")
    }
    memorised = {f"{side}_exact_memorization": level for side in SIDES}
    overall = {"final_score": level, "task_aggregate": level, "mia_score": level, "mmlu": level}
    attacks = {
        "loss_auc": 0.75,
        "loss_auc_stderr": 0.1,
        "loss_auc_low": 0.7,
        "loss_auc_high": 0.8,
        "loss_tpr_at_1": 0.5,
        "privleak": -12.0,
    }
    return {
        **{f"lume_task{i}": rows for i in (1, 2, 3)},
        "lume_mia": attacks,
        "lume_pii": pii,
        "lume_memorization_task1": memorised,
        "lume_score": rows | overall,
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
        if name not in ("img", "meta", "wbr"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*paths: Path, show_pii: bool = False, title: str = "Title") -> str:
    return build_report(read_models(map(str, paths)), title, show_pii)[0]


def test_text_is_escaped_by_construction() -> None:
    assert tag("p", "<b>", title='"<>') == '<p title="&quot;&lt;&gt;">&lt;b&gt;</p>'
    assert join("a&b", Html("<i>"), None) == "a&amp;b<i>"
    assert tag("img", src="x", hidden=True, lang=False) == '<img src="x" hidden>'
    assert visible("a\x1b[31m\u202e\u200b\x00\ud800\n\x9b") == r"a\x1b[31m\u202e\u200b\x00\ud800" + "\n" + r"\x9b"


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
    sample = scored_sample(0, "qa", "forget", 1.0, HOSTILE)
    sample["doc"] |= {"input": HOSTILE, "output": HOSTILE}
    scores = full(0.5) | {f"lume_{HOSTILE}": {HOSTILE: 0.5}}
    path = write_results(f"/m/{HOSTILE}", scores, {"lume_task1": [sample], "lume_mia": mia_samples([1.0], [2.0])})
    page = page_of(path, show_pii=show_pii, title=HOSTILE)
    outline = Outline(page)
    assert not outline.names & {"script", "b", "iframe", "object", "form", "link"}
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ud800-\udfff]", page)
    assert r"<script>alert(1)</script>\x1b[31mred" in outline.text  # shown, as text
    page.encode("utf-8")


def test_the_page_needs_nothing_from_elsewhere(write_results: Write) -> None:
    samples = {"lume_mia": mia_samples([1.0, 1.1], [2.0]), "lume_task2": [scored_sample(0, "qa", "forget", 1.0, "Ada")]}
    page = page_of(write_results("/m/a", full(0.5), samples))
    links = [value or "" for name, value in Outline(page).attributes if name in ("src", "href", "srcset", "action")]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in Outline(page).attributes
    assert "@media print" in page
    assert 'name="viewport"' in page


@pytest.mark.usefixtures("undrawn")
def test_numbers_intervals_and_gaps(write_results: Write) -> None:
    page = page_of(write_results("/m/a", full(0.125)), write_results("/m/b", {"lume_score": {"final_score": 0.25}}))
    outline = Outline(page)
    assert "0.1250.125\u20130.125" in outline.text  # a score and its interval below
    assert "0.7500.700\u20130.800" in outline.text
    assert "_stderr" not in page
    rows = re.findall(r"<tr><th scope=\"row\">b</th>(.*?)</tr>", page)
    assert re.sub("<.*?>", " ", rows[0]).split()[:2] == ["0.250", "-"]


@pytest.mark.usefixtures("undrawn")
def test_parts_without_data_say_how_to_get_it(write_results: Write) -> None:
    bare = Outline(page_of(write_results("/m/a", {"lume_score": {"final_score": 0.5, "missing": "lume_mmlu"}}))).text
    for command in ("--tasks lume_task1,", "--tasks lume_mia --log_samples", "--model lume-hf", "--tasks lume_pii"):
        assert command in bare
    assert "--evaluate_every epoch" in bare
    assert "No final score of a, since these were not scored in full or have no value: lume_mmlu." in bare
    samples = {"lume_mia": mia_samples([1.0], [2.0]), "lume_task1": [scored_sample(0, "qa", "forget", 0.0, "x")]}
    paths = [write_results(f"/m/run/checkpoint-{i}", full(0.5), samples) for i in (1, 2)]
    whole = Outline(page_of(*paths)).text
    assert "Left out" not in whole
    assert "None." in whole  # no leaks


@pytest.mark.usefixtures("undrawn")
def test_personal_data_is_masked_unless_asked_for(write_results: Write) -> None:
    answer = "ada@byron.org 900-51-4344 ADA"
    samples = [scored_sample(0, "qa", "forget", 1.0, answer), scored_sample(1, "sc", "forget", 0.5, answer)]
    path = write_results("/m/a", full(0.5), {"lume_task2": samples})
    masked, shown = (Outline(page_of(path, show_pii=choice)).text for choice in (False, True))
    assert not re.search("ada|byron|900|4344", masked.lower())
    assert "Who is ••• •••" in masked
    assert "shows personal data unmasked" not in masked
    assert "are masked (•••)" in masked
    assert "are masked" not in shown
    assert answer in shown
    assert "Who is Ada Byron?" in shown
    assert "shows personal data unmasked" in shown


def test_the_command_writes_the_page_and_its_pictures(
    write_results: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {"lume_mia": mia_samples([1.0, 1.5], [2.0, 0.5])}
    paths = [write_results(f"/m/run/checkpoint-{i}", full(i / 4), samples) for i in (1, 2)] + [
        write_results("/m/a", full(0.5))
    ]
    output = tmp_path / "new" / "my.html"
    assert cli.main(["report", *map(str, paths), "--output", str(output), "--title", "Mine"]) == 0
    assert "<title>Mine</title>" in output.read_text(encoding="utf-8")
    pictures = sorted(path.name for path in (tmp_path / "new" / "my_files").iterdir())
    assert pictures == [
        "loss1_run-checkpoint-1.png",
        "loss2_run-checkpoint-2.png",
        "pii_forget.png",
        "pii_retain.png",
        "roc_loss.png",
        "tradeoff_lume_task1.png",
        "tradeoff_lume_task2.png",
        "tradeoff_lume_task3.png",
        "training1_1.png",
        "training1_2.png",
    ]
    assert output.read_text(encoding="utf-8").count("<img ") == len(pictures)
    assert f"{len(pictures)} pictures" in capsys.readouterr().out
    blocked = tmp_path / "file"
    blocked.touch()
    assert cli.main(["report", str(paths[0]), "--output", str(blocked / "x.html")]) == 1
    assert f"--output {blocked / 'x.html'}: cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_long_and_equal_names_stay_apart_in_pictures(write_results: Write, tmp_path: Path) -> None:
    samples = {"lume_mia": mia_samples([1.0], [2.0])}
    paths = [write_results(f"/m/{first}{'x' * 60}", full(0.5), samples, folder=first) for first in "ab"]
    _, pictures = build_report(read_models(map(str, paths)), "", False)
    assert len([picture for picture in pictures if picture.file.startswith("loss")]) == 2


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_that_does_not_hold_is_flagged(write_results: Write) -> None:
    one, two = (
        write_results(f"/m/{split}", full(0.5), metadata={"lume_split": split}) for split in ("train", "validation")
    )
    warning = "Not all of these scores can be compared.The rows are of different splits. train: train; validation: "
    assert warning in Outline(page_of(one, two)).text
    assert "can be compared" not in Outline(page_of(one)).text
