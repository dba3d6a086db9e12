"""Runs that follow the level of unseen texts, or end before their last step."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lume_unlearn.training.run import run
from tests.faults.runs import make_config, record

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("little_to_collect")]


def test_a_run_ends_when_few_tokens_violate_the_margin(inputs: Path, tmp_path: Path) -> None:
    whole = record(run(make_config(inputs, tmp_path / "whole")))["history"][-1]["step"]
    options: dict[str, Any] = {"stop_when": "masc", "stop_share": 0.99, "watch_steps": 1}
    found = record(run(make_config(inputs, tmp_path / "out", **options)))
    assert found["history"][-1]["step"] == 1 < whole  # a random model violates nothing
    assert "violate the margin" in found["stopped"]


def test_a_run_ends_at_the_level_of_unseen_texts(inputs: Path, tmp_path: Path) -> None:
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text('{"document": "nothing that anybody has ever read"}\n{"document": "or heard"}\n')
    options: dict[str, Any] = {"stop_when": "level", "unseen": str(unseen), "watch_steps": 1}
    found = record(run(make_config(inputs, tmp_path / "out", learning_rate=0.1, epochs=20, **options)))
    assert "has reached that of unseen texts" in found["stopped"]
    assert len(found["history"]) < 40


def test_a_run_writes_the_substitutes_and_follows_the_level(inputs: Path, tmp_path: Path) -> None:
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text(json.dumps({"document": "nothing that anybody has ever read"}) + "\n")
    config = make_config(inputs, tmp_path / "out", "level", unseen=str(unseen), params={"contexts": 2}, watch_steps=1)
    output = run(config)
    lines = [json.loads(line) for line in (output / "substitutes.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert all(len(line["contexts"]) == 2 for line in lines)
    assert len(record(output)["data_sha256"]) == 3
    state = json.loads(
        (output / f"checkpoint-{record(output)['history'][-1]['step']}" / "trainer_state.json").read_text()
    )
    values = state["stateful_callbacks"]["Progress"]["attributes"]["values"]
    assert math.isfinite(values["shift"])
    assert values["shift"] != 0.0
