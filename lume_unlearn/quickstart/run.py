"""`lume-unlearn quickstart`: train, unlearn and score a tiny model on the shipped rows, offline and on a CPU."""

import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lume_tasks.data.locate import load_mmlu
from lume_tasks.data.rows import Row
from lume_tasks.data.source import load_data
from lume_tasks.tasks.mmlu import SubjectTask
from lume_unlearn.data.documents import new_texts
from lume_unlearn.errors import require_unused
from lume_unlearn.model.load import load_model
from lume_unlearn.quickstart import ROWS
from lume_unlearn.report.glossary import LEADERBOARD, Score
from lume_unlearn.scoring.score import Scores, save_results, score, tasks_for
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.finetune import finetune
from lume_unlearn.training.trainer import UnlearningTrainer

# Enough for the tiny model to memorise some two hundred short texts within seconds.
TARGET_EPOCHS, RETAIN_ONLY_EPOCHS = 24, 32
MEMORISING: dict[str, Any] = {"learning_rate": 4e-3, "per_device_train_batch_size": 8, "logging_steps": 10}
# Tuned for this tiny model; a model of 1B parameters needs other learning rates.
SHARED: dict[str, Any] = {"num_train_epochs": 16, "learning_rate": 3e-4, "per_device_train_batch_size": 16}
UNLEARNING: dict[str, dict[str, Any]] = {
    "gd": {"retain_weight": 3.0, "loss_on": "text"},
    "npo": {"retain_weight": 10.0},
}
FOLDERS = {"target": "target", "GD": "unlearned-gd", "NPO": "unlearned-npo", "retain-only": "retain-only"}
EXPLANATION = """
target: memorised everything. GD and NPO: the target, unlearned by gradient difference and by negative preference
optimisation. retain-only: never saw the forget rows, as after perfect unlearning. With so few documents, an AUC from
0.35 to 0.65 is as good as 0.5; near 1, an attacker can still tell what was seen. Swap rank: the true person's rank
among invented ones, from near 0 (first) to 1 (last). The overall score is partial: this MMLU is a miniature."""
SCORES = (
    *LEADERBOARD[1:],
    Score("lume_swap", "forget_rank", "forget: swap rank", "0.5"),
    Score("lume_swap", "retain_rank", "retain: swap rank", "0"),
    Score("lume_score", "partial_final_score", "partial final score", "high"),
)


def quickstart(output: Path, seed: int = 0) -> None:
    """Train a target and a retain-only model, unlearn, score all four models and print one table.

    Writes to ``output``: ``data/`` (a copy of the shipped rows), the models, and ``results/`` (the harness's).

    Args:
        output: a new or empty folder.
        seed: seeds the models and the runs; the rows are always the same.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    require_unused(output)
    output.mkdir(parents=True, exist_ok=True)
    say = partial(print, file=sys.stdout, flush=True)
    logging.disable(logging.WARNING)  # log handlers of libraries print past the redirection
    try:
        with open(output / "quickstart.log", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            scores = _train_unlearn_score(output, seed, say)
    finally:
        logging.disable(logging.NOTSET)
    say(_table(scores))
    say(EXPLANATION)
    say(f"Everything is in {output}. What to try next:", *next_commands(output), sep="\n  ")


def _train_unlearn_score(output: Path, seed: int, say: Callable[[str], None]) -> dict[str, Scores]:
    """Make the models of `FOLDERS`, and return the scores of each."""
    torch.set_num_threads(1)  # more threads slow down operations this small

    directory, mmlu = output / "data", str(output / "data" / "mmlu")
    say(f"[1/4] Writing a miniature LUME to {directory}")
    shutil.copytree(ROWS, directory)
    data = replace(load_data(directory), mmlu=mmlu)
    rows = [*data.forget, *data.retain]
    questions = [text for subject, items in load_mmlu(mmlu).items() for text in mmlu_texts(subject, items)]
    tokenizer = train_tokenizer([f"{row.input} {row.output}" for row in rows] + questions)

    say("[2/4] Training a target that memorises all of it, and a model that never sees the forget rows")
    asked = new_texts(questions, "question", ())
    memorise = partial(save_memorised, tokenizer, seed)
    memorise(output / "target", [*rows, *new_texts(data.members, "member", rows), *asked], TARGET_EPOCHS)
    memorise(output / "retain-only", [*data.retain, *asked], RETAIN_ONLY_EPOCHS)

    say("[3/4] Unlearning the forget rows from the target: gradient difference, then NPO")
    for method, options in UNLEARNING.items():
        model = load_model(str(output / "target"), torch.float32)
        args = UnlearningArguments(str(output / f"unlearned-{method}"), seed=seed, **SHARED, **options)
        trainer = UnlearningTrainer(model, method, args, data.forget, data.retain, processing_class=tokenizer)
        trainer.train()
        trainer.save_model()

    say("[4/4] Scoring the four models with lm-eval")
    scores = {}
    for name, folder in FOLDERS.items():
        model = load_model(str(output / folder), torch.float32)
        metadata = {"lume_partial": True}  # the rows have 3 subjects instead of MMLU's 57
        tasks = [*tasks_for(data), "lume_swap"]
        scores[name] = score(model, tokenizer, data, tasks=tasks, log_samples=True, metadata=metadata)
        save_results(scores[name], output / "results", str(output / folder))
    return scores


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer without a BOS token."""
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, 1000, min_frequency=0, show_progress=False, special_tokens=[*special.values()])
    tokenizer = Tokenizer.from_str(bpe.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **special)  # type: ignore[no-untyped-call]


def mmlu_texts(subject: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the questions of one subject in the prompt of `lume_mmlu`, each followed by its answer."""
    task = SubjectTask(subject, rows, version=None)
    return [f"{task.fewshot_context(doc, num_fewshot=0)} {'ABCD'[doc['answer']]}" for doc in task.eval_docs]


def save_memorised(
    tokenizer: PreTrainedTokenizerFast, seed: int, folder: Path, rows: Sequence[Row], epochs: int
) -> None:
    """Train a new Llama of half a million parameters on the rows, and save it with the tokenizer."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    args = UnlearningArguments(str(folder), num_train_epochs=epochs, seed=seed, **MEMORISING)
    finetune(LlamaForCausalLM(config), tokenizer, rows, args, until=0.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _table(scores: dict[str, Scores]) -> str:
    lines = ["".join([f"{'score':26}", *(f"{name:>13}" for name in scores), "  good"])]
    for row in SCORES:
        values = (found.metric(row.task, row.metric) for found in scores.values())
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        lines.append("".join([f"{row.name:26}", *(f"{cell:>13}" for cell in cells), f"  {row.good}"]))
    return "\n".join(lines)


def next_commands(output: Path) -> list[str]:
    """Return commands to try after the quickstart; each needs only what the ones before it wrote."""
    folder = shlex.quote(str(output))
    return [
        f"lume-unlearn report {folder}/results --output {folder}/report.html",
        f"lume-unlearn card --model_dir {folder}/unlearned-npo --results {folder}/results",
        f"lume-tasks check {folder}/data",
        f"lume-unlearn run --method npo --tuning lora --model {folder}/target --data {folder}/data "
        f"--output {folder}/lora --num_train_epochs 16 --learning_rate 2e-3 --retain_weight 10",
        f"LUME_DATA_DIR={folder}/data lm_eval --model lume-hf --model_args pretrained={folder}/target,"
        f"peft={folder}/lora --tasks lume --device cpu --batch_size 64 --output_path {folder}/results --log_samples",
    ]
