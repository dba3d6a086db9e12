"""The steps of an audit: the plan, its estimate, and results that are kept."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lume_tasks.data.rows import Row
from lume_unlearn.audit.stages import (
    NEW_TOKENS,
    OVERHEAD,
    TRAINED,
    Speed,
    Stage,
    Work,
    carry_out,
    measured_speed,
    plan,
    seconds_of,
)

ROWS = [Row("a-qa1", "one two three", "four", "own"), Row("b-qa1", "one", "two " * 400, "own")]


class Words:
    """A tokenizer with a token for each word."""

    chat_template: str | None = None
    bos_token = None

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return "you are kind " + " ".join(f"{one['role']} {one['content']}" for one in messages) + " assistant"

    def encode(self, text: str) -> list[str]:
        return text.split()


def test_seconds_by_hand() -> None:
    speed = Speed(read=0.5, write=2.0)
    # 3 + 1 prompt tokens; 2 * 1 + 16 rounded up to 32 new ones, and as many as the protocol allows.
    answers = 4 * 0.5 + (32 + NEW_TOKENS) * 2.0
    assert seconds_of(Work(ROWS), Words(), speed) == OVERHEAD + answers
    assert seconds_of(Work(ROWS, 3), Words(), speed) == OVERHEAD + 3 * answers
    assert seconds_of(Work(read=ROWS[:1], readings=10), Words(), speed) == OVERHEAD + 10 * 4 * 0.5
    assert seconds_of(Work(trained=ROWS[:1], epochs=2), Words(), speed) == OVERHEAD + TRAINED * 2 * 4 * 0.5
    chat = Words()
    chat.chat_template = "a template"
    assert seconds_of(Work(read=ROWS[:1]), chat, speed) == OVERHEAD + (4 + 5) * 0.5


def test_speed_is_measured(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    speed = measured_speed(model, tokenizer, [Row("a-qa1", "The fox jumps", "over", "own")] * 3)
    assert 0 <= speed.read < 1
    assert 0 < speed.write < 1


def test_the_plan_has_a_line_for_each_probe() -> None:
    stages = [Stage("words", "upper", dict, Work(ROWS)), Stage("words", "lower", dict, Work(ROWS, 2))]
    assert plan([*stages, Stage("train", "now", dict, role="now")], [30.0, 30.0, 60.0]).splitlines() == [
        "Plan: 3 steps, about 2.0 minutes:",
        "  words: 2 steps, 6 answers, 1.0 min",
        "  now train: 1 step, 0 answers, 1.0 min",
    ]


def steps(calls: list[str], fail: str = "", key: str = "model") -> list[Stage]:
    def run(title: str) -> Any:
        calls.append(title)
        if title == fail:
            raise RuntimeError(title)
        return {title: {"value": 1.5}}

    return [Stage("probe", title, lambda title=title: run(title), key=lambda: key) for title in "abc"]


def test_an_interrupted_audit_continues_and_gives_the_same(tmp_path: Path) -> None:
    file, calls = tmp_path / "new" / "unfinished.jsonl", list[str]()
    with pytest.raises(RuntimeError):
        list(carry_out(steps(calls, "b"), resume=file))
    with file.open("a") as text:
        text.write('\n{"key": "half a li')  # killed while it wrote
    assert file.stat().st_mode & 0o077 == 0
    found = [result for _, result in carry_out(steps(calls), resume=file)]
    assert found == [{title: {"value": 1.5}} for title in "abc"]
    assert calls == ["a", "b", "b", "c"]
    assert [result for _, result in carry_out(steps(calls), resume=file)] == found
    assert len(calls) == 4
    list(carry_out(steps(calls, key="another model"), resume=file))
    assert len(calls) == 7
