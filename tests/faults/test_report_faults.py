"""Report, card and reference results on what no harness wrote: a page or an error, and nobody steers or is exposed."""

import json
import os
import re
import string
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lume_tasks.errors import DataError
from lume_tasks.tasks.results import read_reference, read_samples
from lume_unlearn import cli
from lume_unlearn.report import plots
from lume_unlearn.report.card import MARK, write_card
from lume_unlearn.report.html import page, section, table, tag
from lume_unlearn.report.leaks import compare
from lume_unlearn.report.page import build_report, write_report
from lume_unlearn.report.redact import MASK, common_words, mask, plain, tokens
from lume_unlearn.report.results import find_runs, read_models
from tests.faults.foreign import DATE, MARKUP, VALUES, changed, places, results, samples, write
from tests.faults.fuzzing import examples

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

EXAMPLES = examples(300)
TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


class Strict(HTMLParser):
    """Fails on anything that could run, load, or move the text."""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert name not in ("script", "iframe", "object", "embed", "form", "link", "base", "svg")
        for key, value in attributes:
            assert not key.startswith("on")
            if key in ("src", "href"):
                assert str(value).startswith(("data:image/png", "#"))


def check_page(text: str) -> None:
    parser = Strict()
    parser.feed(text)
    parser.close()
    text.encode()
    assert text.count("<title>") == text.count("<style>") == text.count("</body>") == 1
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char != "\n"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures: the pages themselves are what counts here."""
    for name in ("trade_off", "over_training", "loss_histogram", "roc", "field_rates"):
        monkeypatch.setattr(plots, name, lambda *args: None)
    monkeypatch.setattr(plots, "png", lambda figure: b"PNG")


def report_of(folder: Path) -> bool:
    """Make a report of all in a folder; whether it went without an error for the user."""
    try:
        check_page(build_report(read_models([str(folder)]), "Title", False)[0])
    except DataError as error:
        message = str(error)
    else:
        return True
    assert f"results_{DATE}.json: " in message or re.search(rf"samples_lume_\w+_{DATE}\.jsonl:\d+: ", message)
    assert all(char == "\n" or char.isprintable() for char in message)
    return False


@pytest.mark.usefixtures("undrawn")
def test_results_with_anything_anywhere(tmp_path: Path) -> None:
    whole = results()
    fine = [
        report_of(write(tmp_path, changed(whole, place, value), {}).parent)
        for place in places(whole)
        for value in [*VALUES, ...]
    ]
    assert len(fine) > 1000
    assert any(fine)
    assert not all(fine)


@pytest.mark.usefixtures("undrawn")
def test_samples_with_anything_anywhere(tmp_path: Path) -> None:
    whole = samples()
    write(tmp_path, results(), whole)
    fine = [
        report_of(write(tmp_path, results(), changed(whole, place, value)).parent)
        for place in places(whole)
        if len(place) > 1
        for value in [*VALUES, ...]
    ]
    assert len(fine) > 500
    assert any(fine)
    assert not all(fine)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "line", ["[" * 10**5, '{"doc":' * 10**4, "1" * 5000, "null", "", "\x1b", '{"doc": {}', "\ufeff{}"]
)
def test_lines_and_files_that_are_no_results(tmp_path: Path, line: str) -> None:
    write(tmp_path, results(), {"lume_task1": [samples()["lume_task1"][0], line]})
    with pytest.raises(DataError, match=r"samples_lume_task1_.*\.jsonl:2: not"):
        build_report(read_models([str(tmp_path)]), "", False)
    write(tmp_path, line, {})
    with pytest.raises(DataError, match="not a results file of lm-eval"):
        read_models([str(tmp_path)])
    with pytest.raises(DataError, match="is not a results file of the harness"):
        read_reference(str(tmp_path))


@pytest.mark.parametrize("score", [1e308, -1e308, -5, 1e-320, 0])
def test_numbers_that_no_axis_expects_are_drawn(tmp_path: Path, score: float) -> None:
    content, logged = results(), samples()
    for metrics in content["results"].values():
        metrics.update({name: score for name in metrics if name != "missing,none"})
    for number, sample in enumerate(logged["lume_mia"]):
        sample["loss_auc"][1] = score * (1 + number)
    write(tmp_path, content, logged)
    assert report_of(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        '{"config": {"model": "x"}, "history": [{"epoch": 1, "step": 0}]}',
        '{"config": {"model": "x"}, "history": [{"epoch": NaN, "step": 1}]}',
        '{"config": {"model": "a\\u0000"}, "history": [{"epoch": 1, "step": 1}]}',
        '{"config": {"model": 3}, "history": [{"epoch": "a", "step": "b"}]}',
        '{"config": [], "history": []}',
        "[" * 10**5,
        "null",
        "\x00",
    ],
)
def test_records_of_runs_that_no_run_wrote(tmp_path: Path, record: str) -> None:
    (tmp_path / "unlearning.json").write_text(record)
    steps = ("1", "2", "9" * 400, "\u0663")
    for step in steps:
        (tmp_path / step[:9]).mkdir()
        write(tmp_path / step[:9], results() | {"model_name": f"{tmp_path}/checkpoint-{step}"}, {})
    (run,) = find_runs(read_models([str(tmp_path)]))
    assert len(run.points) == len(steps)


def test_paths_of_models_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for number, name in enumerate((f"{tmp_path}/loop", "/m/a\0b", "/" + "x" * 5000, "/m/\ud800")):
        for step in (1, 2):
            (tmp_path / f"1\u00b2{number}" / str(step)).mkdir(parents=True, exist_ok=True)
            content = results() | {"model_name": f"{name}/checkpoint-{step}"}
            write(tmp_path / f"1\u00b2{number}" / str(step), content, {})
    assert len(find_runs(read_models([str(tmp_path)]))) == 4


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 300, "/dev/null"])
def test_reference_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(DataError, match="lume_reference_results: ") as caught:
        read_reference(path)
    assert str(caught.value).isprintable()


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, results(), {})
    (tmp_path / "report.html").write_text("mine")
    monkeypatch.setattr("lume_unlearn.report.page.build_report", lambda *args: ("x" * 100, []))

    def fail(path: Path, text: str, **options: Any) -> None:
        path.write_bytes(text[:50].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(DataError, match="cannot be written"):
        write_report([str(tmp_path)], tmp_path / "report.html", "Title", False)
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_text() == "mine"
    assert not (tmp_path / "report.html.partial").exists()


def test_samples_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_samples(tmp_path)


@pytest.mark.parametrize("output", ["/", ".", "/dev/null/x.html", "/proc/x.html"])
def test_pages_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str) -> None:
    write(tmp_path, results(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lume_unlearn.report.page.build_report", lambda *args: ("text", []))
        assert cli.main(["report", str(tmp_path), "--output", output]) == 1
    assert f"--output {output}: cannot be written" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Generated text


@EXAMPLES
@given(texts=st.lists(TEXT | st.sampled_from([MARKUP, "<!--", "]]>", "&lt;script&gt;", "javascript:"]), min_size=4))
def test_no_text_can_script_the_page(texts: list[str]) -> None:
    cells = table(texts, [texts])
    check_page(page(texts[0], section(texts[1], cells, tag("p", *texts, title=texts[2]), tag("code", texts[3]))))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("show_pii", [False, True])
def test_a_hostile_model_in_a_report(tmp_path: Path, show_pii: bool) -> None:
    logged = samples()
    for sample in logged["lume_task1"]:
        sample["filtered_resps"] = [MARKUP * 3]
        sample["doc"] |= {"input": MARKUP, "output": MARKUP}
    content = results() | {"model_name": f"/m/{MARKUP}", "model_source": MARKUP, "lm_eval_version": MARKUP}
    content["results"][f"lume{MARKUP}"] = {f"{MARKUP},none": 1.0}
    content["results"]["lume_score"]["missing,none"] = MARKUP
    write(tmp_path, content, logged)
    page_, *_ = write_report([str(tmp_path)], tmp_path / "report.html", MARKUP, show_pii)
    check_page(page_.read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in (tmp_path / "report_files").iterdir())


SECRET = st.text(string.digits + "-", min_size=1, max_size=11) | st.text(
    string.ascii_letters + "\u0430\u00e9", min_size=1
)


@EXAMPLES
@given(
    text=TEXT | st.lists(SECRET | st.sampled_from([" ", "@", ".", "the", "https://", "\u200b", "\x00"])).map("".join)
)
def test_masked_text_holds_nothing_but_common_words(text: str) -> None:
    shown = common_words({str(i): ["the baker lives in the old town"] for i in range(3)})
    for token in tokens(plain(text)):
        masked = mask(token, shown)
        letters = [char for char in masked.replace(MASK, "") if char.isalnum() or unicodedata.category(char) == "So"]
        assert not letters or masked in shown or masked.lower() in shown
        assert not any(char.isnumeric() for char in masked)
    for pieces in compare(text, text[::-1], shown):
        assert not any(char.isnumeric() for piece, _ in pieces for char in piece)


@pytest.mark.parametrize(
    "name", ["\U0001f170\U0001f153", "\U0001f1e6\U0001f1e9", "\u2801\u2819", "\u24b6", "\u2776", "\u2460"]
)
def test_letters_and_digits_in_disguise_are_masked(name: str) -> None:
    assert set("".join(mask(token, frozenset()) for token in tokens(plain(name)))) == {MASK[0]}


# ---------------------------------------------------------------------------------------------------------------------
# The card


def run_record() -> dict[str, Any]:
    config = {"method": "npo", "tuning": "lora", "model": "/x/base", "output": "/x/npo", "epochs": 1}
    sums = {"/x/forget.jsonl": "abc"}
    return {"config": config, "versions": {"torch": "2"}, "data_sha256": sums, "seconds": 1.0, "processes": 1}


def card_of(folder: Path, record: Any, content: dict[str, Any]) -> str | None:
    """The card's text below its metadata; None where the user was told an error."""
    (folder / "unlearning.json").write_text(record if isinstance(record, str) else json.dumps(record))
    write(folder, content | {"model_name": str(folder)}, {})
    try:
        text = write_card(folder, [str(folder)]).read_text(encoding="utf-8")
    except DataError:
        return None
    assert text.startswith("---\n")
    return text.split(MARK, 1)[1]


def test_records_and_results_with_anything_anywhere_in_a_card(tmp_path: Path) -> None:
    whole, content = run_record(), results()
    plain_text = card_of(tmp_path, whole, content)
    assert plain_text
    texts = [card_of(tmp_path, changed(whole, place, value), content) for place in places(whole) for value in VALUES]
    texts += [card_of(tmp_path, changed(whole, place, ...), content) for place in places(whole)]
    for place in (("config", "limit"), ("configs", "lume_pii", "metadata", "lume_split")):
        texts += [card_of(tmp_path, whole, changed(content, place, value)) for value in VALUES]
    assert len(texts) > 200
    for text in filter(None, texts):
        in_code = re.sub(r"`[^`\n]*`", "", text)
        assert "<" not in in_code
        assert text.count("\n# ") == 1
        assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char != "\n"]


@pytest.mark.parametrize("record", ["[" * 10**5, "{}", "null", "[]", "\x00", ""])
def test_records_that_are_none(tmp_path: Path, record: str) -> None:
    assert card_of(tmp_path, record, results()) is None


@pytest.mark.parametrize(
    "name", ["\x1b[31m", "a`b|c<img src=x onerror=alert(1)>[x](javascript:1)", "a\nb", "---", "\udcff"]
)
def test_folders_with_hostile_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    text = card_of(folder, run_record(), results())
    assert text
    heading = text.strip().partition("\n")[0]
    assert not set("<>`|[]") & set(heading)


def test_cards_in_the_way(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_bytes(b"\xff\xfe mine")
    assert card_of(tmp_path, run_record(), results()) is None
    assert card.read_bytes() == b"\xff\xfe mine"
    card.unlink()
    card.symlink_to(tmp_path / "gone" / "x")
    assert card_of(tmp_path, run_record(), results())  # in the link's place, not where it leads
    assert not (tmp_path / "gone").exists()
    card.unlink()
    card.mkdir()
    assert card_of(tmp_path, run_record(), results()) is None
    os.rmdir(card)
    assert card_of(tmp_path, run_record(), results())
