"""`lume-unlearn compare`: how it divides, judges and shares the work, and a whole comparison of tiny models."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.metrics.unlearning import distance
from lume_unlearn.cli import main
from lume_unlearn.compare import queue as queues
from lume_unlearn.compare import run as comparison
from lume_unlearn.compare import tuning
from lume_unlearn.compare.documents import divided, divided_attack, division, write_division
from lume_unlearn.compare.judge import GROUPS, shortfall
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.compare.queue import Queue, open_storage, trials_of
from lume_unlearn.compare.requests import parts_of
from lume_unlearn.data.inputs import load_inputs
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS
from tests.conftest import make_model, make_rows, make_tokenizer, write_rows

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("short_answers")
RETRAINED = {
    "forget_exact_memorization": 0.1,
    "forget_probability": 0.1,
    "retain_exact_memorization": 0.9,
    "loss_auc": 0.5,
}


def test_documents_are_divided_whole_and_by_task() -> None:
    rows = [
        Row(f"doc{i}{kind}", f"text {i}", kind, f"Task{i % 2 + 1}") for i in range(20) for kind in ("sc1", "qa0", "qa1")
    ]
    parts = divided({"forget": rows, "retain": rows[:12]}, 0.3, seed=1)
    stems = {part: {row.stem for row in parts[part]["forget"]} for part in parts}
    assert not stems["tuning"] & stems["final"]
    assert len(stems["tuning"]) == 6
    assert len(parts["tuning"]["forget"]) == 18
    assert {row.task for row in parts["tuning"]["forget"]} == {"Task1", "Task2"}
    assert parts == divided({"forget": rows, "retain": rows[:12]}, 0.3, seed=1)


def test_attack_documents_follow_their_rows() -> None:
    rows = [Row(f"d{i}sc1", f"begin {i}", f"end {i}", "Task3") for i in range(4)]
    members = [*(f"begin {i} end {i}" for i in range(4)), "of no row"]
    found = divided_attack(members, [f"unseen {i}" for i in range(8)], rows[:1], rows[1:])
    assert found["tuning"] == (["begin 0 end 0"], ["unseen 0", "unseen 1"])
    assert len(found["final"][0]) == 3
    assert len(found["final"][1]) == 6


def test_objectives_by_hand() -> None:
    numbers = {
        "forget_exact_memorization": 0.4,
        "forget_probability": 0.2,
        "retain_exact_memorization": 0.8,
        "loss_auc": 0.8,
    }
    assert distance(numbers, RETRAINED, GROUPS) == pytest.approx(((0.3 + 0.1) / 2 + 0.1 + 0.3) / 3)
    assert shortfall(numbers) == pytest.approx((0.3 + 0.2 + 0.6) / 3)
    assert distance(RETRAINED, RETRAINED, GROUPS) == 0


def test_every_method_has_a_range_for_its_main_parameter(model_dir: Path, tmp_path: Path) -> None:
    for method in METHODS:
        file = "alternatives" if METHODS[method].alternative == "file" else None
        config = CompareConfig(str(model_dir), str(tmp_path), methods=method, alternatives=file)
        run = tuning.defaults(config, method, "full")
        for name, value in tuning.default_setting(run).items():
            low, high = tuning.ranges(run)[name]
            assert low <= value <= high, (method, name)


def make_queue(folder: Path, url: str | None = None, model: str = "m", count: int = 3) -> Queue:
    slots = [{"slot": i, "fixed": {}} for i in range(count)]
    lock = FileLock(folder / ".storage.lock")
    with lock:
        storage = open_storage(url, folder)
    return Queue(storage, lock, "npo lora", {"model": model}, slots)


@pytest.mark.parametrize("url", [None, "journal:{}/trials.log"])
def test_a_trial_of_a_dead_process_is_repeated(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "SILENCE", 0.2)
    monkeypatch.setattr(queues, "WAIT", 0.05)
    first, second = (make_queue(tmp_path, url and url.format(tmp_path)) for _ in range(2))
    lost, other = first.take(), second.take()
    assert (lost.user_attrs["slot"], other.user_attrs["slot"]) == (0, 1)
    second.complete(other, 0.5)
    done = []
    for queue, trial in trials_of([second]):
        done.append(trial.user_attrs["slot"])
        queue.failed(trial, "diverged") if trial.user_attrs["slot"] == 2 else queue.complete(trial, 0.1)
    assert sorted(done) == [0, 2]
    first.complete(lost, 0.9)  # it was only asleep: the other one's result counts
    assert {slot: trial.value for slot, trial in first.results().items()} == {0: 0.1, 1: 0.5, 2: queues.WORST}
    assert first.finished


def take_all(folder: Path) -> list[int]:
    found = []
    for queue, trial in trials_of([make_queue(folder, count=12)]):
        found.append(trial.user_attrs["slot"])
        queue.complete(trial, 0.5)
    return found


def test_two_processes_take_every_trial_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = [*pool.map(take_all, [tmp_path, tmp_path])]
    assert sorted(found[0] + found[1]) == list(range(12))


def test_a_storage_of_another_comparison_is_refused(tmp_path: Path) -> None:
    make_queue(tmp_path)
    with pytest.raises(ConfigError, match="it holds another comparison \\(model 'm' instead of 'other'\\)"):
        make_queue(tmp_path, model="other")
    with pytest.raises(ConfigError, match="--storage nothing://x: cannot be opened"):
        open_storage("nothing://x", tmp_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a retrained model, one with another tokenizer, and data with members and unseen documents."""
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("target", 0), ("retrained", 1)):
        make_model(seed=seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    make_model().save_pretrained(folder / "other")
    make_tokenizer(bos=True).save_pretrained(folder / "other")
    forget = make_rows("forget", 24)
    write_rows(folder / "data" / "forget.jsonl", forget)
    write_rows(folder / "data" / "retain.jsonl", make_rows("retain", 24))
    texts = {"member": [f"{r.input} {r.output}" for r in forget if r.kind == "sc"]}
    texts["nonmember"] = [f"Nobody saw the text {i}." for i in range(12)]
    (folder / "data" / "mia_data").mkdir()
    for name, documents in texts.items():
        lines = "".join(json.dumps({"document": text}) + "\n" for text in documents)
        (folder / "data" / "mia_data" / f"{name}.jsonl").write_text(lines)
    return folder


def command(files: Path, output: Path, *more: str) -> list[str]:
    plain = ["compare", "--model", f"{files}/target", "--data", f"{files}/data", "--output", str(output)]
    plain += ["--methods", "gd", "--tunings", "lora", "--trials", "2", "--seeds", "2", "--epochs", "1"]
    return [*plain, "--loss_on", "text", "--audit_rows", "4", *more]


def test_a_comparison_ends_in_a_table_a_page_and_recipes_and_is_not_done_twice(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    more = ("--retrained", f"{files}/retrained")
    assert main(command(files, output, *more)) == 0
    content = json.loads((output / "compare.json").read_text())
    assert set(content["table"]) == {"target", "retrained", "gd lora"}
    assert content["table"]["retrained"]["distance"] == [0, 0, 0]
    assert content["table"]["retrained"]["depth"] == [1, 1, 1]
    assert content["table"]["target"]["depth"] == pytest.approx([0, 0, 0], abs=1e-4)
    assert content["depth"]["gd lora"]["rows"] > 0
    assert set(content["audits"]["gd lora"]) == {"8-bit", "4-bit", "repair", "relearning"}
    assert [point["epoch"] for point in content["curves"]["gd lora"]] == [0, 1]
    trials = content["trials"]["gd lora"]
    assert [trial["setting"]["learning_rate"] for trial in trials] == pytest.approx([1e-3, 2e-4])
    best = min(trials, key=lambda trial: trial["value"])["setting"]
    assert content["settings"]["gd lora"]["best"] == best
    mean, low, high = content["table"]["gd lora"]["loss_auc"]
    assert low <= mean <= high
    recipe = yaml.safe_load((output / "recipes" / "gd_lora.yaml").read_text())
    assert (recipe["method"], recipe["learning_rate"]) == ("gd", best["learning_rate"])
    page = (output / "compare.html").read_text()
    assert "distance to retrained" in page
    assert "unlearning depth" in page
    assert "gd lora" in page

    def done_twice(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(tuning, "run_trial", done_twice)
    monkeypatch.setattr(comparison.final, "final_run", done_twice)
    assert main(command(files, output, *more)) == 0
    assert json.loads((output / "compare.json").read_text()) == content


def test_tuning_gets_the_alternatives_of_its_rows_and_as_many_steps(files: Path, tmp_path: Path) -> None:
    rows = read_rows(files / "data" / "forget.jsonl")
    lines = [json.dumps({"id": row.id, "alternative": f"not {row.id}"}) for row in rows]
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    config = CompareConfig(
        f"{files}/target",
        str(tmp_path),
        methods="dpo",
        data=f"{files}/data",
        alternatives=str(tmp_path / "other.jsonl"),
        batch_size=8,
    )
    files_of_parts = division(files / "data", "all", config.alternatives, 0.25, 0)
    data = write_division(files_of_parts, tmp_path)["tuning"]
    run = comparison._on_tuning_rows(config, tuning.defaults(config, "dpo", "lora"), data)
    inputs = load_inputs(run)
    assert inputs.alternatives == [[f"not {row.id}"] for row in inputs.forget]
    assert len(inputs.forget) / run.batch_size == pytest.approx(len(rows) / 8, rel=0.2)


def test_requests_share_no_document() -> None:
    rows = make_rows("forget", 12)
    first, second = parts_of(rows, 2)
    assert sorted(row.id for row in (*first, *second)) == sorted(row.id for row in rows)
    assert not {row.stem for row in first} & {row.stem for row in second}


def test_recipes_are_compared_like_methods(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "gentle.yaml"
    recipe.write_text("method: npo\nbeta: 0.3\nretain_weight: 2.0\nprotect: project\ntuning: full\n")
    output = tmp_path / "out"
    options = ("--methods", str(recipe), "--trials", "1", "--seeds", "1", "--audits", "false", "--requests", "2")
    assert main(command(files, output, *options)) == 0
    content = json.loads((output / "compare.json").read_text())
    assert set(content["table"]) == {"target", f"{recipe} lora"}
    written = yaml.safe_load((output / "recipes" / "gentle_lora.yaml").read_text())
    first, second = content["requests"][f"{recipe} lora"]
    assert len(first) == 1
    assert len(second) == 2  # of the rows of both requests
    assert "after request 2" in (output / "compare.html").read_text()
    assert {"method": "npo", "protect": "project", "beta": 0.3, "retain_weight": 2.0}.items() <= written.items()
    assert main(command(files, output, *options[:1], f"gd,{recipe}", *options[2:])) == 0  # one more joins
    content = json.loads((output / "compare.json").read_text())
    assert set(content["table"]) == {"target", "gd lora", f"{recipe} lora"}
    recipe.write_text("method: npo\nbeta: 0.4\n")
    assert main(command(files, output, *options)) == 1
    assert "it holds another comparison (recipe" in capsys.readouterr().err
    recipe.write_text("method: npo\nnonsense: 1\n")
    with pytest.raises(ConfigError, match="`run` has no option nonsense"):
        tuning.recipe_options(str(recipe))


def test_a_method_that_fails_is_a_result(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(config: Any, callbacks: Any) -> Any:
        raise ConfigError("--learning_rate 1: diverged")

    monkeypatch.setattr(tuning, "unlearned", diverge)
    output = tmp_path / "out"
    assert main(command(files, output, "--audits", "false")) == 0
    content = json.loads((output / "compare.json").read_text())
    assert {trial["state"] for trial in content["trials"]["gd lora"]} == {"failed"}
    assert content["trials"]["gd lora"][0]["reason"] == "--learning_rate 1: diverged"
    assert set(content["table"]) == {"target"}
    assert "gd lora: no trial was completed" in (output / "compare.html").read_text()


def test_bad_input_is_named(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--retrained", f"{files}/other"): "has another tokenizer than --model",
        ("--methods", "gd,nothing"): "--methods nothing: choose from ga, gd",
        ("--methods", "dpo"): "--methods dpo: need --alternatives FILE",
        ("--tunings", "lora,3"): "--tunings lora,3: choose from lora, full, last:K",
        ("--model", "/nowhere"): "--model /nowhere (no such folder here, so the hub was asked): its tokenizer",
        ("--data", "/nowhere"): "--data /nowhere: is not a directory",
    }
    for number, (options, message) in enumerate(cases.items()):
        assert main(command(files, tmp_path / str(number), *options)) == 1, options
        assert message in capsys.readouterr().err
