"""The page: what it shows, what it hides, its figures, and what hostile text cannot make it do."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lume_tasks.errors import DataError
from lume_tasks.tasks.mia import ATTACKS
from lume_unlearn.report import glossary, plots
from lume_unlearn.report.page import page_data, render, write_report
from lume_unlearn.report.results import read_models

HOSTILE = (
    "</title><script>alert(1)</script>\x1b[31mred\x1b[0m\u202eevil\u200b\"'&\x00\ud800 <b onmouseover=x> {{7*7}} $x$"
)
ROW = r'<tr><th scope="row">(.*?)</th>(.*?)</tr>'
SIDES = ("forget", "retain")
Write = Callable[..., Path]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes the time."""
    monkeypatch.setattr(plots, "_picture", lambda name, alt, figure: plots.Picture(f"{name}.png", alt, b"PNG"))


def scored_sample(number: int, kind: str, score: float, answer: str) -> dict[str, Any]:
    metric = {"sc": "forget_regurgitation", "qa": "forget_knowledge"}[kind]
    doc = {"id": f"p{number}{kind}0", "side": "forget", "input": "Who is Ada Byron?", "output": "Ada, 900-51-4344"}
    return {"doc_id": number, "doc": doc, "filtered_resps": [answer], metric: score}


def full(level: float) -> dict[str, dict[str, Any]]:
    """Scores of every kind, at one level, with intervals."""
    names = [f"{side}_{kind}" for side in SIDES for kind in ("regurgitation", "knowledge")]
    rows = {f"{name}{end}": level for name in names for end in ("", "_low", "_high")}
    pii = {f"{side}_{field}_exact": level for side in SIDES for field in ("ssn", "phone")}
    attacks = {"loss_auc": 0.75, "loss_auc_stderr": 0.1, "loss_auc_low": 0.7, "loss_auc_high": 0.8}
    attacks |= {"loss_tpr_at_1": 0.5, "privleak": -12.0}
    return {
        **{f"lume_task{i}": rows for i in (1, 2, 3)},
        "lume_mia": attacks,
        "lume_pii": pii,
        "lume_swap": {f"{side}_rank": level for side in SIDES},
        "lume_memorization_task1": {f"{side}_exact_memorization": level for side in SIDES},
        "lume_score": rows | {"final_score": level, "task_aggregate": level, "mia_score": level, "mmlu": level},
    }


def mia_samples(members: list[float], others: list[float]) -> list[dict[str, Any]]:
    pairs = [(True, -loss) for loss in members] + [(False, -loss) for loss in others]
    return [
        {"doc_id": i, "doc": {"member": member, "number": i}, "loss_auc": [member, score]}
        for i, (member, score) in enumerate(pairs)
    ]


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
def test_hostile_text_stays_text(write_results):
    sample = scored_sample(0, "qa", 1.0, HOSTILE)
    sample["doc"] |= {"input": HOSTILE, "output": HOSTILE}
    scores = full(0.5) | {f"lume_{HOSTILE}": {HOSTILE: 0.5}}
    path = write_results(f"/m/{HOSTILE}", scores, {"lume_task1": [sample], "lume_mia": mia_samples([1.0], [2.0])})
    page = page_of(path, show_pii=True, title=HOSTILE)
    outline = Outline(page)
    assert not outline.names & {"script", "b", "iframe", "object", "form", "link"}
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ud800-\udfff]", page)
    assert r"<script>alert(1)</script>\x1b[31mred" in outline.text  # shown, as text
    assert "{{7*7}}" in outline.text
    page.encode("utf-8")


def test_page_has_scores_and_figures_and_loads_nothing_from_elsewhere(write_results, tmp_path):
    samples = {"lume_mia": mia_samples([1.0, 1.5], [2.0, 0.5]), "lume_task2": [scored_sample(0, "qa", 1.0, "Ada")]}
    run = "/m/cost $x$ ^ _{"  # no name breaks a figure
    paths = [write_results(f"{run}/checkpoint-{i}", full(i / 8), samples) for i in (1, 2)]
    paths.append(write_results("/m/b", {"lume_score": {"final_score": 0.25}}))
    for name, others in (("one class", []), ("NaN", [float("nan")])):
        paths.append(write_results(f"/m/{name}", full(0.5), {"lume_mia": mia_samples([1.0], others)}))
    output = tmp_path / "new" / "my.html"
    _, *pictures = write_report(list(map(str, paths)), output, "Mine")
    page = output.read_text(encoding="utf-8")
    assert "<title>Mine</title>" in page
    names = ["roc_loss", *(f"tradeoff_lume_task{i}" for i in (1, 2, 3))]
    assert sorted((tmp_path / "new" / "my_files").iterdir()) == sorted(pictures)
    assert sorted(path.stem for path in pictures) == names
    outline = Outline(page)
    assert "0.1250.125\u20130.125" in outline.text  # a score and its interval below
    assert "0.7500.700\u20130.800" in outline.text
    assert "_stderr" not in page
    rows = re.findall(r"<tr><th scope=\"row\">b</th>(.*?)</tr>", page)
    assert re.sub("<.*?>", " ", rows[0]).split()[:2] == ["0.250", "-"]
    attributes = outline.attributes
    links = [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
    assert len(links) == len(names) + 1  # and a link to the meanings
    assert all(link.startswith(("data:image/png;base64,iVBOR", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in attributes
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "x.html"
    with pytest.raises(DataError, match=re.escape(f"--output {output}: cannot be written")):
        write_report([str(paths[2])], output)


def known(forget: list[float], loss: float, write_results: Write, name: str, logged: bool = True) -> Path:
    """Results of a model with these row scores, and the mean of them as its score."""
    rows = [scored_sample(number, "qa", score, "") for number, score in enumerate(forget)]
    samples = {"lume_task1": rows, "lume_mia": mia_samples([loss, loss + 1], [3.0, 4.0])}
    scores = {"lume_task1": {"forget_knowledge": sum(forget) / len(forget)}, "lume_mia": {"loss_auc": 0.5}}
    return write_results(f"/m/{name}", scores, samples if logged else {})


@pytest.mark.usefixtures("undrawn")
def test_distance_to_the_retrained_model_is_of_rows(write_results, tmp_path):
    """The mixture has the retrained model's mean, not its rows."""
    shown = {"same": ([0.25] * 4, 1.0), "mixture": ([1.0, 0.0, 0.0, 0.0], 1.0), "loss": ([0.25] * 4, 9.0)}
    models = [known(*numbers, write_results, name) for name, numbers in shown.items()]
    models.append(known([0.5] * 4, 1.0, write_results, "unlogged", logged=False))
    goal = known([0.25] * 4, 1.0, write_results, "retrained")
    write_report(list(map(str, models)), tmp_path / "page.html", retrained=str(goal))
    page = (tmp_path / "page.html").read_text().partition("<h2>Scores</h2>")[0]
    cells = {name: re.findall(r"<td>(.*?)(?:<small>|</td>)", row) for name, row in re.findall(ROW, page)}
    assert cells["same"] == ["0.000", "0.000", "-", "0.000", "-"]
    assert cells["mixture"] == ["0.188", "0.375", "-", "0.000", "-"]
    assert cells["loss"] == ["0.250", "0.000", "-", "0.500", "-"]
    assert cells["unlogged"] == ["-", "-", "-", "-", "-"]
    assert "unlogged: there is no distance: no samples of rows were logged; score it with --log_samples." in page


@pytest.mark.usefixtures("undrawn")
def test_sections_without_data_say_so(write_results):
    bare = Outline(page_of(write_results("/m/a", {"lume_score": {"final_score": 0.5, "missing": "lume_mmlu"}}))).text
    assert "Left out" in bare
    assert "No final score of a" in bare
    samples = {"lume_mia": mia_samples([1.0], [2.0]), "lume_task1": [scored_sample(0, "sc", 0.0, "x")]}
    whole = Outline(page_of(*(write_results(f"/m/run/checkpoint-{i}", full(0.5), samples) for i in (1, 2)))).text
    assert "Left out" not in whole
    assert "None." in whole  # no leaks


@pytest.mark.usefixtures("undrawn")
def test_misleading_scores_have_a_warning(write_results):
    shares = {"train": 1.0, "validation": 0.25}
    one, two = (
        write_results(f"/m/{split}", {"lume_mia": {"members_unlearned": share}}, metadata={"lume_split": split})
        for split, share in shares.items()
    )
    text = Outline(page_of(one, two)).text
    assert "The rows belong to different splits" in text
    assert "validation: 25% of the attack's member documents" in text
    assert "train: 100%" not in text


@pytest.mark.usefixtures("undrawn")
def test_personal_data_is_redacted_unless_asked_for(write_results):
    answer = "ada@byron.org 900-51-4344 ADA"
    samples = [scored_sample(0, "qa", 1.0, answer), scored_sample(1, "sc", 0.5, answer)]
    path = write_results("/m/a", full(0.5), {"lume_task2": samples})
    redacted, shown = (Outline(page_of(path, show_pii=choice)).text for choice in (False, True))
    assert not re.search("ada|byron|900|4344", redacted.lower())
    assert "Who is ••• •••" in redacted
    assert "This page shows personal data" not in redacted
    for text in (answer, "Who is Ada Byron?", "This page shows personal data"):
        assert text in shown


@pytest.mark.usefixtures("undrawn")
def test_rows_of_ones_own_are_among_the_worst_leaks_if_they_are_given_away(write_results):
    samples = [scored_sample(0, "qa", 0.0, "Ada has 900-51-4344"), scored_sample(1, "qa", 0.0, "no")]
    rows = [sample | {"forget_known": known} for sample, known in zip(samples, (1.0, 0.0), strict=True)]
    path = write_results("/m/a", {"lume_rows": full(0.5)["lume_task1"]}, {"lume_rows": rows})
    text = Outline(page_of(path)).text
    assert "Own rows, row 0; given away: 1.00" in text
    assert "Own rows, row 1" not in text


def test_every_attack_has_a_name():
    assert set(glossary.ATTACKS) == set(ATTACKS)
