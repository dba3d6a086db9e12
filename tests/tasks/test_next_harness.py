"""Our task classes on a small imitation of those of lm-eval 0.5, where each kind of request has a class of its own."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

OWN = ("base", "generation", "mia", "memorization", "mmlu")


class Task:
    """The bare class: it reads the data when they are first needed and builds no requests."""

    def __init__(self, config):
        assert not {"class", "_qualified_name"} & set(config)
        self.config = SimpleNamespace(**{"generation_kwargs": None, "test_split": "test"} | config)
        self.dataset = None
        self.download({"lume_task": "Task1"})


KINDS = ("GenerateTask", "LoglikelihoodTask", "MultipleChoiceTask")
GenerateTask, LoglikelihoodTask, MultipleChoiceTask = (type(kind, (Task,), {}) for kind in KINDS)


@pytest.fixture
def ours(monkeypatch):
    """Our modules, imported afresh on the imitation."""
    imitation = ModuleType("lm_eval.api.task")
    imitation.ConfigurableTask = Task
    for kind in (GenerateTask, LoglikelihoodTask, MultipleChoiceTask):
        setattr(imitation, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", imitation)
    monkeypatch.setattr("lm_eval.api.task", imitation)
    package = importlib.import_module("lume_tasks.tasks")
    before = {name: sys.modules.pop(f"lume_tasks.tasks.{name}", None) for name in OWN}
    yield SimpleNamespace(**{name: importlib.import_module(f"lume_tasks.tasks.{name}") for name in OWN})
    for name, module in before.items():
        sys.modules.pop(f"lume_tasks.tasks.{name}")
        if module is not None:
            sys.modules[f"lume_tasks.tasks.{name}"] = module
            setattr(package, name, module)


def test_each_task_has_the_class_of_its_requests_and_its_documents(ours, data_dir, model_dir):
    metadata = {"version": 1.0, "lume_data_dir": str(data_dir), "tokenizer": str(model_dir)}
    for own, kind, function, count in (
        (ours.generation.GenerationTask, GenerateTask, ours.generation.task_rows, 8),
        (ours.memorization.MemorizationTask, LoglikelihoodTask, ours.memorization.memorization_rows, 8),
        (ours.mia.MiaTask, LoglikelihoodTask, ours.mia.documents, 16),
    ):
        config = {"task": "x", "class": own, "_qualified_name": "lume::x", "custom_dataset": function}
        task = own(config | {"metadata": metadata})
        assert own.__mro__.index(kind) < own.__mro__.index(Task)
        assert len(task.dataset["test"]) == count
    rows = [{"question": "question 0?", "choices": ["a", "b", "c", "d"], "answer": 0}]
    assert issubclass(ours.mmlu.SubjectTask, MultipleChoiceTask)
    assert len(ours.mmlu.SubjectTask("letters", rows, 1.0).dataset["test"]) == 1
