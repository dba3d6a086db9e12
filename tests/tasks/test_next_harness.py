"""Our task classes on a small imitation of those of lm-eval 0.5, where each kind of request has a class of its own."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

OWN = ("base", "generation", "mia", "memorization", "mmlu")


class Task:
    """The bare class: it reads the data when they are first needed and builds no requests."""

    def __init__(self, config: dict[str, Any]) -> None:
        assert not {"class", "_qualified_name"} & set(config)
        known = {
            "dataset_kwargs": None,
            "generation_kwargs": None,
            "process_results": None,
            "test_split": "test",
        } | config
        self.config = SimpleNamespace(**known)
        self._dataset: Any = None
        self.instances: list[Any] = []

    @property
    def dataset(self) -> Any:
        if self._dataset is None:
            self.download(self.config.dataset_kwargs)  # type: ignore[attr-defined]
        return self._dataset

    @dataset.setter
    def dataset(self, value: Any) -> None:
        self._dataset = value

    def build_all_requests(self, **_: Any) -> None:
        for number, doc in enumerate(self.dataset["test"]):
            self.instances += self.construct_requests(doc=doc, ctx=doc[self.config.doc_to_text], doc_id=number) or []
        if not self.instances:
            raise ValueError("task.build_requests() did not find any docs!")

    def construct_requests(self, doc: Any, ctx: str, *, doc_id: int, **_: Any) -> Any:
        return None


class GenerateTask(Task):
    def construct_requests(self, doc: Any, ctx: str, *, doc_id: int, **_: Any) -> Any:
        return [Instance("generate_until", doc, (ctx, dict(self.config.generation_kwargs)), 0)]


class LoglikelihoodTask(Task):
    def construct_requests(self, doc: Any, ctx: str, *, doc_id: int, **_: Any) -> Any:
        return [Instance("loglikelihood", doc, (ctx, doc[self.config.doc_to_target]), 0)]


class MultipleChoiceTask(Task):
    def construct_requests(self, doc: Any, ctx: str, *, doc_id: int, **_: Any) -> Any:
        return [Instance("loglikelihood", doc, (ctx, f" {choice}"), i) for i, choice in enumerate("ABCD")]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Our modules, imported afresh on the imitation."""
    imitation: Any = ModuleType("lm_eval.api.task")
    imitation.ConfigurableTask = Task
    for kind in (GenerateTask, LoglikelihoodTask, MultipleChoiceTask):
        setattr(imitation, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", imitation)
    monkeypatch.setattr("lm_eval.api.task", imitation)
    before = {name: sys.modules.pop(f"lume_tasks.tasks.{name}", None) for name in OWN}
    package = importlib.import_module("lume_tasks.tasks")
    yield SimpleNamespace(**{name: importlib.import_module(f"lume_tasks.tasks.{name}") for name in OWN})
    for name, module in before.items():
        sys.modules.pop(f"lume_tasks.tasks.{name}")
        if module is not None:
            sys.modules[f"lume_tasks.tasks.{name}"] = module
            setattr(package, name, module)


def built(make: Any, config: dict[str, Any], data: dict[str, Any]) -> list[Any]:
    task = make(
        {"class": make, "_qualified_name": f"lume::{config['task']}", "metadata": {"version": 1.0, **data}} | config
    )
    task.build_all_requests()
    return [request.args for request in task.instances]


def test_each_task_builds_its_requests(ours: SimpleNamespace, data_dir: Path, model_dir: Path) -> None:
    data = {"lume_data_dir": str(data_dir), "tokenizer": str(model_dir)}
    generation = {
        "task": "lume_task1",
        "custom_dataset": ours.generation.task_rows,
        "dataset_kwargs": {"lume_task": "Task1"},
        "doc_to_text": "input",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 256},
    }
    requests = built(ours.generation.GenerationTask, generation, data)
    assert len(requests) == 8
    assert all(options == generation["generation_kwargs"] for _, options in requests)
    memorization = generation | {
        "task": "lume_memorization_task1",
        "custom_dataset": ours.memorization.memorization_rows,
        "doc_to_target": "continuation",
    }
    assert ("forget row 0 about", " answer forget 0") in built(ours.memorization.MemorizationTask, memorization, data)
    mia = {
        "task": "lume_mia",
        "custom_dataset": ours.mia.documents,
        "doc_to_text": "context",
        "doc_to_target": "continuation",
    }
    assert len(built(ours.mia.MiaTask, mia, data)) == 16


def test_a_subject_builds_a_request_a_choice(ours: SimpleNamespace) -> None:
    rows = [{"question": "question 0?", "choices": ["a", "b", "c", "d"], "answer": 0}]
    task = ours.mmlu.SubjectTask("letters", rows, 1.0)
    task.config.doc_to_text = "question"  # the imitation has no templates
    task.build_all_requests()
    assert [request.args for request in task.instances] == [("question 0?", f" {choice}") for choice in "ABCD"]
