"""`compare`: how it divides, judges and shares the work, and whole comparisons of tiny models."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError
from lume_tasks.metrics import swap
from lume_unlearn.audit.probes import run_probes
from lume_unlearn.cli.main import main
from lume_unlearn.compare import comparison, judge, training
from lume_unlearn.compare.documents import divided
from lume_unlearn.compare.judge import objective
from lume_unlearn.compare.page import alike
from lume_unlearn.compare.run import compare
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method, param
from lume_unlearn.model.load import load_model
from tests.conftest import make_model, make_rows, make_tokenizer

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("short_answers")
QUICK: dict[str, Any] = {"trials": 1, "seeds": 1, "probes": (), "num_train_epochs": 1}


@dataclass
class Push(Method):
    """A method as somebody would write it in a notebook."""

    margin: float = param(3.0, "NLL up to which a token is pushed", search=(1.0, 9.0))

    def forget_loss(self, batch: Any) -> Any:
        return (self.margin - batch.forget.values).clamp(min=0).sum() / batch.counts.tokens("forget")


def test_documents_are_divided_whole_and_by_task_and_attack_documents_follow_their_rows():
    rows = [
        Row(f"doc{i}{kind}", f"text {i}", f"{kind} {i}", f"Task{i % 2 + 1}")
        for i in range(20)
        for kind in ("sc1", "qa0", "qa1")
    ]
    members = [*(f"{row.input} {row.output}" for row in rows if row.kind == "sc"), "of no row"]
    retain = [replace(row, id=f"kept-{row.id}") for row in rows[:12]]
    data = Data(rows, retain, members, [f"unseen {i}" for i in range(20)], "mmlu")
    parts = divided(data, 0.3, seed=1)
    tuned, final = ({row.stem for row in part.forget} for part in (parts.tuning, parts.final))
    assert not tuned & final
    assert (len(tuned), len(parts.tuning.forget), len(parts.final.forget)) == (6, 18, 42)
    assert {row.task for row in parts.tuning.forget} == {"Task1", "Task2"}
    assert parts == divided(data, 0.3, seed=1)
    own = [f"{row.input} {row.output}" for row in parts.tuning.forget if row.kind == "sc"]
    assert (parts.tuning.members, len(parts.tuning.nonmembers)) == (own, 6)
    assert (len(parts.final.members), len(parts.final.nonmembers)) == (14, 14)
    assert (parts.tuning.mmlu, parts.final.mmlu) == (None, "mmlu")


def test_objective_by_hand():
    target = {"retain_probability": 0.98}
    found = {"retain_probability": 0.97, "swap_distance": 0.3, "forget_extraction_strength": 0.1}
    assert objective(found, target) == pytest.approx(0.1)
    assert objective(found | {"retain_probability": 0.9}, target) == pytest.approx(0.54)
    del found["swap_distance"]  # nobody is named
    assert objective(found, target) == pytest.approx(0.05)
    assert judge.chance({"swap_rows": 12.0}) == pytest.approx(0.0265, abs=1e-4)
    assert judge.chance(found) == 0


def test_chance_is_the_spread_of_the_distance_of_uniform_ranks():
    draw = np.random.default_rng(0)
    distances = [swap.distance(list((draw.integers(0, 41, 12) + 0.5) / 41)) for _ in range(2000)]
    assert judge.chance({"swap_rows": 12.0}) == pytest.approx(2**0.5 * np.std(distances) / 4, rel=0.1)


def test_trials_and_probes_are_judged_by_the_swap_test_and_curves_are_not():
    def rows(*names):
        fields = ("phone number", "home town")
        return [Row(f"{name[0]}-qa{i}", f"What is the {fields[i]} of {name}?", f"It is {name[0]}{i}47.", "own")
                for name in names for i in range(2)]  # fmt: skip

    data = Data(rows("Petra Quillane", "Idris Mbeki"), rows("Lowri Szabados", "Casimir Oyelaran"))
    judging, model = judge.Judge(make_tokenizer(), 64), make_model()
    found = judging.judged(model, data, chat=False)
    assert 0 < found["swap_distance"] < 1
    assert {"forget_leak_p", "forget_avoided_p", "retain_probability"} <= found.keys()
    assert 0 < objective(found, found) < 0.5
    assert found["swap_rows"] == 4
    followed = judging.followed(model, data, False, 2)
    assert found.keys() - followed.keys() == {"swap_distance", "swap_rows", *judge.SWAP}

    probed = run_probes(model, make_tokenizer(), data, ["quantised"], tasks=judge.tasks_of(data), chat=False)
    ranks = {name for one in probed.values() for name in one.rows if name.endswith("_rank")}
    assert ranks == {"forget_rank"}  # half the time, since no number of a probe is from the retain rows' ranks


def command(files: Path, output: Path, *more: str) -> list[str]:
    plain = ["compare", "--model", f"{files}/target", "--data", f"{files}/data", "--output", str(output)]
    plain += ["--methods", "gd", "--tunings", "lora", "--trials", "2", "--seeds", "2", "--num_train_epochs", "1"]
    return [*plain, "--loss_on", "text", "--probes", "repair", *more]


def test_quality_of_answers_by_hand():
    data = Data(
        [Row("ana-qa0", "Where does Ana live?", "7 Elm Road", "own")], [Row("bo-qa0", "And Bo?", "5 Oak Street", "own")]
    )
    found = judge.quality({"ana-qa0": "5 Oak Street", "bo-qa0": "7" * 20}, data)
    assert found == {"repetition": pytest.approx(5 / 11), "other_facts": 1.0}
    assert judge.quality({"ana-qa0": "7 Elm Road", "bo-qa0": ""}, data) == {"repetition": 0.0, "other_facts": 0.0}


def test_a_comparison_ends_in_a_table_a_page_and_recipes_and_is_not_done_twice(files, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    more = ("--retrained", f"{files}/retrained")
    assert main(command(files, output, *more)) == 0
    content = json.loads((output / "compare.json").read_text())
    assert set(content["table"]) == {"target", "retrained", "gd lora"}
    assert content["table"]["retrained"]["distance"][0] == 0
    assert set(content["audits"]) == {"target", "retrained", "gd lora"}
    assert [point["epoch"] for point in content["curves"]["gd lora"]] == [0, 1]
    trials = content["trials"]["gd lora"]
    assert [trial["setting"]["learning_rate"] for trial in trials] == pytest.approx([1e-3, 5e-3])
    assert trials[0]["value"] == trials[1]["value"]
    best = trials[1]["setting"]  # so the higher rate is chosen
    assert content["settings"]["gd lora"]["best"] == best
    assert (content["settings"]["gd lora"]["ran"]["loss_on"], content["failures"]) == ("text", {})
    for column in ("distance", "loss_auc", "loss_tpr_at_1", "repetition", "other_facts"):
        mean, low, high = content["table"]["gd lora"][column]
        assert low <= mean <= high
    recipe = yaml.safe_load((output / "recipes" / "gd_lora.yaml").read_text())
    assert (recipe["method"], recipe["learning_rate"]) == ("gd", best["learning_rate"])
    assert "gd lora" in (output / "compare.html").read_text()

    def done_twice(*args, **options):
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "unlearned", done_twice)
        patched.setattr(judge.Judge, "result", done_twice)
        assert main(command(files, output, *more)) == 0
    assert json.loads((output / "compare.json").read_text()) == content
    capsys.readouterr()
    assert main(command(files, output, *more, "--relearn_rate", "2e-4")) == 0  # what is probed is done again
    done = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines() if ": " in line]
    assert sorted(done) == ["final gd lora, seed 0", "models, retrained", "models, target"]


def test_objects_and_a_method_of_ones_own(tmp_path):
    target = make_model()
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    data = {"forget": make_rows("forget", 12), "retain": [vars(row) for row in make_rows("retain", 12)]}
    methods = [
        Push(margin=5.0),
        {"method": Push, "name": "pushed", "loss_on": "text"},
        {"method": Push, "name": "half", "bf16": True},
    ]
    content = compare(
        target, methods, data, tmp_path, tokenizer=make_tokenizer(), retrained=make_model(seed=1), **QUICK
    )
    names = {"push(margin=5.0) lora", "pushed lora", "half lora"}
    assert set(content["table"]) == {"target", "retrained", *names}
    assert (content["failures"], content["settings"]["half lora"]["ran"]["bf16"]) == ({}, True)
    assert content["settings"]["push(margin=5.0) lora"]["default"]["margin"] == 5
    assert content["settings"]["pushed lora"]["ran"]["loss_on"] == "text"
    assert target.state_dict().keys() == before.keys()
    assert all(weight.equal(before[name]) for name, weight in target.state_dict().items())
    with pytest.raises(ConfigError, match="tokenizer"):
        compare(target, [Push], data, tmp_path, **QUICK)
    with pytest.raises(
        ConfigError, match=r"^--methods None: give a value\n--probes None: give a value, or \(\) for no"
    ):
        compare(target, None, data, tmp_path, tokenizer=make_tokenizer(), **QUICK | {"probes": None})
    with pytest.raises(ConfigError, match="--probes plain: choose from"):
        compare(target, "gd", data, tmp_path, tokenizer=make_tokenizer(), **QUICK | {"probes": "plain"})


def test_a_recipe_may_name_the_base_model_which_may_not_change(files, tmp_path, monkeypatch):
    base, seen = tmp_path / "base", []
    make_model(seed=1).save_pretrained(base)

    class Trainer(training.UnlearningTrainer):
        def __init__(self, *args, base, **more):
            seen.append(base.state_dict())
            super().__init__(*args, base=base, **more)

    monkeypatch.setattr(training, "UnlearningTrainer", Trainer)
    given = (str(files / "target"), [{"method": "counterfactual", "name": "taught", "base": str(base)}], files / "data")
    content = compare(*given, tmp_path / "out", **QUICK)
    assert (set(content["table"]), content["failures"]) == ({"target", "taught lora"}, {})
    weights = load_model(str(base), torch.float32).state_dict()
    assert all(weight.equal(weights[name]) for base in seen for name, weight in base.items())
    assert len(seen) == 2
    make_model(seed=2).save_pretrained(base)
    with pytest.raises(ConfigError, match=r"other settings.*content of base"):
        compare(*given, tmp_path / "out", **QUICK)


def test_tuning_gets_the_alternatives_of_its_rows_if_the_method_needs_any_and_as_many_steps(
    files, tmp_path, monkeypatch
):
    rows, seen = read_rows(files / "data" / "forget.jsonl"), []

    class Trainer(training.UnlearningTrainer):
        def __init__(self, model, method, args, forget, retain, **more):
            if method.name == "dpo":
                seen.append((len(forget) / args.per_device_train_batch_size, forget, more["alternatives"]))
            super().__init__(model, method, args, forget, retain, **more)

    monkeypatch.setattr(training, "UnlearningTrainer", Trainer)
    others = {row.id: [f"not {row.id}"] for row in rows}
    options = QUICK | {"per_device_train_batch_size": 8, "alternatives": others}
    content = compare(f"{files}/target", ["gd", "dpo"], files / "data", tmp_path / "out", **options)
    assert content["failures"] == {}
    (steps, tuned, texts), (final_steps, every, _) = seen
    assert texts == {row.id: others[row.id] for row in tuned}
    assert (len(every), final_steps) == (24, 3)
    assert steps == pytest.approx(final_steps, rel=0.35)
    del others[rows[0].id]
    said = f"alternatives: 1 forget rows have none: {rows[0].id}; add one for each"
    with pytest.raises(DataError, match=said):
        compare(f"{files}/target", ["dpo"], files / "data", tmp_path, **options | {"trials": 0})


def test_options_of_a_recipe_win(files, tmp_path, capsys):
    recipe = tmp_path / "gentle.yaml"
    own = "method: npo\nbeta: 0.3\nretain_weight: 2.0\nrobust: sam\ntuning: full\nchat: false\n"
    recipe.write_text(own + "loss_on: answer\nnum_train_epochs: 2\nlearning_rate: 1e-4\nmodel: elsewhere\nseed: null\n")
    output = tmp_path / "out"
    options = ("--methods", str(recipe), "--trials", "0", "--seeds", "1", "--probes", "none")
    assert main(command(files, output, *options)) == 0
    content = json.loads((output / "compare.json").read_text())
    name = f"{recipe} full"
    assert set(content["table"]) == {"target, without chat template", name}
    ran = content["settings"][name]["ran"]
    assert (ran["num_train_epochs"], ran["loss_on"], ran["chat"], ran["robust"]) == (2, "answer", False, "sam")
    assert [point["epoch"] for point in content["curves"][name]] == [0, 1, 2]
    setting = content["settings"][name]
    assert setting["default"] == setting["best"] == {"learning_rate": 1e-4, "retain_weight": 2.0, "beta": 0.3}
    assert content["trials"][name] == []
    written = yaml.safe_load((output / "recipes" / "gentle_full.yaml").read_text())
    assert {"method": "npo", "robust": "sam", "beta": 0.3, "chat": False}.items() <= written.items()
    assert main(command(files, output, *options[:1], f"gd,{recipe}", *options[2:])) == 0  # one more joins
    content = json.loads((output / "compare.json").read_text())
    assert set(content["table"]) == {"target", "target, without chat template", "gd lora", name}
    recipe.write_text("method: npo\nbeta: 0.4\ntuning: full\n")
    assert main(command(files, output, *options)) == 2
    assert "holds a comparison with other settings" in capsys.readouterr().err


def test_settings_that_cannot_be_told_apart_are_named():
    def result(*scores):
        return [{"rows": {"rows": {"forget t f": {f"d{i}qa0": score for i, score in enumerate(scores)}}}}]

    some, same = [0.2, 0.4, 0.1, 0.3] * 3, [0.4, 0.2, 0.3, 0.1] * 3
    (goal,) = result(*[0.0] * 12)
    entered = {"a": result(*some), "b": result(*same), "c": result(*[0.9, 0.8] * 6)}
    assert alike(entered, dict.fromkeys(entered, goal)) == [["a", "b"]]
    assert alike(entered, {}) == []
