"""The harness run on our tasks alone, with stand-ins for a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lume_tasks.data import locate
from lume_tasks.paths import task_dir

Run = Callable[..., Any]


def numbers(results: Any, task: str) -> dict[str, float]:
    """The metrics of a task, without the harness's standard errors."""
    values = results["results"][task].items()
    return {key.removesuffix(",none"): v for key, v in values if key.endswith(",none") and "_stderr" not in key}


def token_values(model: Any, ids: list[int], start: int) -> tuple[torch.Tensor, ...]:
    """Compute log p of each token from ``start`` on, mean and variance of log p there, and whether it ranks first."""
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, start - 1 : -1].double().log_softmax(-1)
    targets = torch.tensor(ids[start:])
    mean = (logp.exp() * logp).sum(-1)
    variance = (logp.exp() * logp.square()).sum(-1) - mean.square()
    return logp[torch.arange(len(targets)), targets], mean, variance, logp.argmax(-1) == targets


class FakeLM(LM):
    """Answers requests from two functions of their arguments, and keeps the requests."""

    tokenizer_name = "none"

    def __init__(self, generate: Callable[[str], str], score: Callable[[str, str], float]) -> None:
        super().__init__()
        self.generate, self.score = generate, score
        self.requests: list[Instance] = []

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.requests += requests
        return [self.generate(request.args[0]) for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.requests += requests
        return [(self.score(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "<chat>" + "".join(turn["content"] for turn in chat_history)


@pytest.fixture(scope="session")
def fake_lm(data_dir: Path) -> Callable[..., FakeLM]:
    """Make a model by what it knows: generation as a function of the right output a side, and AUC."""
    right = {row.input: row.output for rows in locate.load_rows(data_dir).values() for row in rows}

    def make(forget: Callable[[str], str] = str, retain: Callable[[str], str] = str, auc: float = 1.0) -> FakeLM:
        def generate(prompt: str) -> str:
            return (forget if prompt.startswith("forget") else retain)(right[prompt])

        def score(context: str, continuation: str) -> float:
            if context.endswith("Answer:"):  # the right choice of question i is i modulo 4
                number = int(context.split("question ")[-1].split("?")[0])
                return float(continuation == " " + "ABCD"[number % 4])
            known = "nonmember" not in context + continuation
            return 0.0 if auc == 0.5 else -1.0 if known == (auc == 1.0) else -1e6

        return FakeLM(generate, score)

    return make


@pytest.fixture(scope="session")
def manager(data_dir: Path, model_dir: Path) -> Callable[..., TaskManager]:
    """Make a task manager that knows our tasks alone, on the miniature data unless metadata says otherwise."""
    usual = {"lume_data_dir": str(data_dir), "lume_mmlu_path": str(data_dir / "mmlu"), "tokenizer": str(model_dir)}

    def make(metadata: Mapping[str, Any] | None = None) -> TaskManager:
        return TaskManager(include_path=task_dir(), include_defaults=False, metadata=usual | dict(metadata or {}))

    return make


@pytest.fixture(scope="session")
def run(manager: Callable[..., TaskManager]) -> Run:
    """``simple_evaluate`` with that task manager: ``run(lm, "lume_task1", metadata={...}, limit=3)``."""

    def run(lm: Any, *tasks: str, metadata: Mapping[str, Any] | None = None, **options: Any) -> Any:
        metadata = dict(metadata or {}) | ({"lume_gen_kwargs": True} if "gen_kwargs" in options else {})
        options = {"bootstrap_iters": 0, "task_manager": manager(metadata)} | options
        return simple_evaluate(lm, tasks=list(tasks), **options)

    return run


@pytest.fixture
def whole_mmlu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the questions of the miniature data for all that MMLU has."""
    monkeypatch.setattr(locate, "MMLU_SUBJECTS", ("high_school_counting", "letters"))
    monkeypatch.setattr(locate, "MMLU_QUESTIONS", 13)


@pytest.fixture(scope="session")
def checkpoint(lume_models: Path) -> Path:
    """A real model that has seen the retain half alone."""
    return lume_models / "lume-retain-13m"
