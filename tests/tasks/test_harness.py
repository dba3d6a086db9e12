"""The YAML tasks in the stock harness: with stand-ins that know all or nothing, and with real if tiny models."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaForCausalLM

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_tasks.errors import DataError
from lume_tasks.paths import task_dir
from lume_tasks.tasks.score import GENERATION_TASKS
from tests.conftest import write_rows
from tests.tasks.conftest import numbers

OWN_TASKS = (*GENERATION_TASKS, "lume_mia")
KINDS = ("regurgitation", "knowledge", "rouge1")
METRICS = ("loss_auc", "mia_score", *(f"{side}_{kind}" for side in ("forget", "retain") for kind in KINDS))
SHORT = {"max_gen_toks": 12}
PROMPTS = [
    "The quick brown fox",
    "trailing space ",
    "  two\n\nparagraphs: 1\n",
    "{{ not.jinja }} {% if %}",
    "Élodie wrote \u2014 日本語 🙂",
    "7",
    "['a', 'b']",
    "the river and the fox " * 20,
]


def scores(results: Any, *tasks: str) -> dict[str, dict[str, Any]]:
    """The numbers of the protocol."""
    found = {task: numbers(results, task) for task in tasks}
    return {task: {name: values[name] for name in METRICS if name in values} for task, values in found.items()}


@pytest.fixture(scope="session")
def prompts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose prompts are easily spoilt on the way to the model."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [Row(f"{i}-{'sc1' if i % 2 else 'qa0'}", prompt, "the fox", "Task1") for i, prompt in enumerate(PROMPTS)]
    write_rows(folder / "forget.jsonl", rows[:4])
    write_rows(folder / "retain.jsonl", rows[4:])
    return folder


@pytest.fixture(scope="session")
def stopping_model(model_dir: Path) -> LlamaForCausalLM:
    """A model that says EOS after some prompts early, after some late and after some not at all."""
    model = LlamaForCausalLM.from_pretrained(model_dir).eval()
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 3
    return model


@pytest.mark.parametrize(("forget", "auc"), [(str, 1.0), (lambda _: "zzz", 0.0), (lambda _: "", 0.5)])
def test_oracles_get_the_scores_that_they_earn(run: Any, fake_lm: Any, forget: Any, auc: float) -> None:
    results = run(fake_lm(forget, str, auc), *OWN_TASKS)
    right = {"forget": float(forget("a") == "a"), "retain": 1.0}
    wanted = {task: {f"{side}_{kind}": right[side] for side in right for kind in KINDS} for task in GENERATION_TASKS}
    wanted["lume_mia"] = {"loss_auc": auc, "mia_score": 1 - 2 * abs(auc - 0.5)}
    assert scores(results, *OWN_TASKS) == wanted
    assert [results["results"][task]["sample_len"] for task in OWN_TASKS] == [8, 8, 8, 16]


@pytest.mark.parametrize("bos", [False, True])
def test_generations_are_those_of_the_plain_model(run, stopping_model, model_dir, bos_model_dir, prompts_dir, bos):
    tokenizer = AutoTokenizer.from_pretrained(bos_model_dir if bos else model_dir)
    plain, lengths = {}, set()
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert (int(ids[0, 0]) == tokenizer.bos_token_id) is bos
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        ids = stopping_model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        plain[prompt] = tokenizer.decode(ids, skip_special_tokens=True)
        lengths.add(len(ids))
    assert len(lengths) > 2  # some stopped by themselves
    for batch_size in (1, 4):
        lm = HFLM(pretrained=stopping_model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
        results = run(lm, "lume_task1", metadata={"lume_data_dir": str(prompts_dir)}, gen_kwargs=SHORT)
        assert {s["doc"]["input"]: s["resps"][0][0] for s in results["samples"]["lume_task1"]} == plain


@pytest.mark.parametrize(("limit", "empty"), [(3, {"retain_knowledge"}), (4, set())])
def test_limit_leaves_something_of_both_sides_first(run: Any, fake_lm: Any, limit: int, empty: set[str]) -> None:
    results = scores(run(fake_lm(), *OWN_TASKS, limit=limit), *OWN_TASKS)
    for task in GENERATION_TASKS:
        assert {name for name, value in results[task].items() if math.isnan(value)} == empty
    assert not math.isnan(results["lume_mia"]["loss_auc"])


def test_request_cache_never_serves_the_prompts_of_other_data(run, fake_lm, prompts_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    lm = fake_lm()
    lm.generate = lambda _: ""
    run(lm, "lume_task1", cache_requests=True)
    lm.requests.clear()
    run(lm, "lume_task1", metadata={"lume_data_dir": str(prompts_dir)}, cache_requests=True)
    assert {request.args[0] for request in lm.requests} == set(PROMPTS)


OWN = {"lume_data": Data([Row("a-qa0", "Who is Ada Byron?", "A countess", "own", "Ada Byron")], [])}


@pytest.mark.parametrize("task", ["lume_rows", "lume_memorization_rows", "lume_swap"])
def test_templates_are_refused_for_rows_that_are_asked_through_one(run: Any, fake_lm: Any, task: str) -> None:
    with pytest.raises(DataError, match=f"{task}: .* chat template by itself.*; drop --apply_chat_template "):
        run(fake_lm(), task, metadata=OWN, apply_chat_template=True)


def test_data_without_rows_of_a_task_names_the_tasks_that_have_rows(run: Any, fake_lm: Any) -> None:
    with pytest.raises(DataError, match=r"no row of Task2 in split 'all'; .* use --tasks lume_rows,lume_score"):
        run(fake_lm(), "lume_task2", metadata=OWN)


@pytest.mark.parametrize("task", ["lume_task3", "lume_mia"])
def test_templates_are_refused(run: Any, fake_lm: Any, task: str) -> None:
    named = "--apply_chat_template and --system_instruction"
    with pytest.raises(DataError, match=f"{task}: .*drop {named} "):
        run(fake_lm(), task, apply_chat_template=True, system_instruction="Be brief.")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("num_fewshot: 2", "without examples or description; leave num_fewshot"),
        ("description: Be brief.", "without examples or description; leave num_fewshot"),
        ("generation_kwargs: {until: ['.'], max_gen_toks: 4}", r"leave until=\['.'\], max_gen_toks=4 out of"),
    ],
)
def test_options_of_a_users_group_that_change_the_protocol_are_refused(
    fake_lm: Any, data_dir: Path, tmp_path: Path, option: str, message: str
) -> None:
    (tmp_path / "own.yaml").write_text(f"group: own\ntask: [lume_task1]\n{option}\n")
    folders = [str(task_dir()), str(tmp_path)]
    own = TaskManager(include_path=folders, include_defaults=False, metadata={"lume_data_dir": str(data_dir)})
    with pytest.raises(DataError, match=f"^lume_task1: .*{message}"):
        simple_evaluate(fake_lm(), tasks=["own"], task_manager=own)


@pytest.mark.parametrize(
    ("task", "metadata", "message"),
    [
        ("lume_task1", {"lume-split": "x"}, r'no option "lume-split", .* Did you mean lume_split\? Its options'),
        ("lume_task1", {"data_dir": "x"}, r'no option "data_dir", .* Did you mean lume_data_dir\? Its options'),
        ("lume_mmlu", {"lume_mmlu_limit": "5"}, "lume_mmlu_limit has to be a whole number of questions .*, not '5'"),
        ("lume_mmlu", {"lume_mmlu_subjects": "leters"}, 'has no subject "leters"; it has: high_school_counting'),
        ("lume_mmlu", {"lume_mmlu_path": "cais/mmlu", "lume_mmlu_subjects": "astrology"}, 'cais/mmlu has no .* "astro'),
        *(("lume_mia", {"lume_min_k": value}, r"lume_min_k .* in \(0, 1\], not") for value in (0, 1.5, "0.2")),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(manager: Any, task: str, metadata: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        manager(metadata).load([task])


TWO_RANKS = """
import json, sys
import torch.distributed
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

folder, model, metadata, out = sys.argv[1:]
manager = TaskManager(include_path=folder, include_defaults=False, metadata=json.loads(metadata))
results = simple_evaluate(
    "hf", model_args={"pretrained": model}, tasks=["lume"], task_manager=manager, bootstrap_iters=0,
    batch_size=4, device="cpu", gen_kwargs={"max_gen_toks": 12}, limit=7, use_cache=out,
)
assert torch.distributed.get_world_size() == 2
if results is not None:
    json.dump(results["results"], open(out, "w"))
"""


def test_two_ranks_agree_with_one(run: Any, data_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "two_ranks.py", tmp_path / "results.json"
    script.write_text(TWO_RANKS)
    metadata = {"lume_data_dir": str(data_dir), "lume_mmlu_path": str(data_dir / "mmlu"), "tokenizer": str(model_dir)}
    metadata["lume_gen_kwargs"] = True  # type: ignore[assignment]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    words = [*launch, str(task_dir()), str(model_dir), json.dumps(metadata), str(out)]
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(task_dir().parent)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    options = {"model_args": {"pretrained": str(model_dir)}, "batch_size": 4, "device": "cpu", "gen_kwargs": SHORT}
    one = run("hf", "lume", limit=7, **options)["results"]
    assert out.read_text() == json.dumps(one)  # as text: NaN is not equal to itself
    assert {path.name for path in tmp_path.glob("*.db")} == {"results.json_rank0.db", "results.json_rank1.db"}
