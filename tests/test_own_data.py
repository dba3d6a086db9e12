"""Data of one's own: rows without LUME's tasks and ids, asked through the model's chat template."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lume_tasks.data.chat import chat_prompt, through_template
from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError
from lume_tasks.models.hf import LumeHF
from lume_tasks.tasks import model_checks
from lume_unlearn.data.encode import Encoder
from lume_unlearn.methods.common import IGNORED
from lume_unlearn.scoring.score import MEANS, score
from tests.conftest import make_model, make_tokenizer

TEMPLATE = (
    "{{ bos_token or '' }}{% for turn in messages %}[{{ turn['role'] }}]\n{{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
QUESTION = Row("ada-qa10", "Where does Ada live?", "In a house near the river", "clients")


def chat_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(bos)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    make_model().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Eleven questions about one person and a text a side, as somebody writes them: no id, no task."""
    for side in ("forget", "retain"):
        rows = [{"input": f"{side} question {i}?", "output": f"answer {i}", "document": side} for i in range(11)]
        rows.append({"input": f"A {side} text", "output": "живёт лиса.", "document": side, "kind": "sc"})
        (tmp_path / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("bos", [False, True])
def test_a_question_is_trained_as_the_deployed_model_is_asked(bos):
    tokenizer = chat_tokenizer(bos)
    found = Encoder(tokenizer, "text").one(QUESTION)
    asked = "<bos>" * bos + f"[user]\n{QUESTION.input}\n[assistant]\n"
    assert tokenizer.decode(found.input_ids) == f"{asked}{QUESTION.output}<eos>"
    answer = [label for label in found.labels if label != IGNORED]
    assert tokenizer.decode(answer) == f"{QUESTION.output}<eos>"
    assert tuple(answer) == found.input_ids[-len(answer) :]
    assert Encoder(tokenizer, chat=False).one(QUESTION) == Encoder(make_tokenizer(bos)).one(QUESTION)


def test_texts_rows_of_lume_and_models_without_template_stay_bare():
    tokenizer = chat_tokenizer()
    assert through_template(tokenizer, "clients", "qa")
    assert not through_template(tokenizer, "clients", "sc")
    assert not through_template(tokenizer, "Task1", "qa")
    assert not through_template(make_tokenizer(), "clients", "qa")


def test_a_template_that_refuses_a_single_question_is_an_error_with_advice():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('needs a system text') }}"
    with pytest.raises(DataError, match=r"refuses a single question \(needs a system text\).*--chat false"):
        chat_prompt(tokenizer, "Who?")


def test_scoring_sees_the_tokens_of_training(own_data):
    model, tokenizer = make_model(), chat_tokenizer()
    scores = score(model, tokenizer, own_data, tasks=["lume_memorization_rows"], log_samples=True)
    for sample in scores.results["samples"]["lume_memorization_rows"]:
        doc = sample["doc"]
        tokens = Encoder(tokenizer).one(Row(doc["id"], doc["input"], doc["output"], "own"))
        ids, labels = torch.tensor([tokens.input_ids[:-1]]), torch.tensor([tokens.labels[:-1]])  # without EOS
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert sample[f"{doc['side']}_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_rows_of_any_label_have_the_four_numbers(chat, own_data, monkeypatch):
    def answers(self, requests, disable_tqdm=False):
        assert all(("[assistant]" in r.args[0]) == (chat and "question" in r.args[0]) for r in requests)
        return [r.doc["output"] if r.doc["side"] == "retain" else "no" for r in requests]

    monkeypatch.setattr(LumeHF, "generate_until", answers)
    scores = score(make_model(), chat_tokenizer(), own_data, chat=chat)
    assert set(scores.results["results"]) == {"lume_rows", "lume_score"}
    for task in scores.results["results"]:
        assert [scores.metric(task, name) for name in MEANS] == [0, 0, 1, 1]
    assert scores.metric("lume_score", "task_aggregate") is None


@pytest.mark.parametrize("task", ["lume_rows", "lume_memorization_rows", "lume_swap"])
def test_arguments_of_the_template_are_refused(task):
    asked = {"input": "Where does Ada Byron live?", "output": "In London", "subject": "Ada Byron"}
    for arguments in ({"enable_thinking": False}, {"chat_template_args": {"x": 1}}):
        options = {"tasks": [task], "metadata": arguments, "gen_kwargs": {"max_gen_toks": 2}}
        with pytest.raises(DataError, match=f"--model_args {next(iter(arguments))}: .* default arguments"):
            score(make_model(), chat_tokenizer(), {"forget": [asked]}, **options)
        score(make_model(), make_tokenizer(), {"forget": [asked]}, **options)


def test_lume_tasks_warn_of_a_chat_model(data_dir, caplog):
    model_checks.warn_once.cache_clear()
    tasks = ["lume_task1", "lume_task2"]
    score(make_model(), chat_tokenizer(), data_dir, tasks=tasks, limit=1, gen_kwargs={"max_gen_toks": 2})
    assert [record.name for record in caplog.records if "chat template" in record.getMessage()] == ["lume_tasks"]


def test_rows_of_earlier_requests_are_monitored(own_data, chat_model, data_dir, tmp_path, command):
    """Of rows without ids and tasks."""
    words = ("--model", chat_model, "--data", own_data, "--method", "ga", "--num_train_epochs", 1)
    code, out, err = command("run", *words, "--output", tmp_path / "out", "--forgotten", data_dir)
    assert code == 0, err
    assert "forgotten NLL" in out
    assert "--tasks lume_rows,lume_score" in out
    monitored = json.loads((tmp_path / "out" / "unlearning.json").read_text())["monitored"]
    assert all(entry["forgotten_nll"] > 0 for entry in monitored)
    code, _, err = command("run", *words, "--output", tmp_path / "other", "--forgotten", tmp_path / "no")
    assert (code, f"--forgotten {tmp_path / 'no'}: is not a directory" in err) == (2, True)
