"""`lume-unlearn quickstart`: train, unlearn and score a tiny model on the shipped rows, offline and on a CPU."""

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.loggers import EvaluationTracker
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lume_tasks.data import locate
from lume_tasks.tasks.mmlu import SubjectTask
from lume_unlearn.config import RunConfig
from lume_unlearn.errors import require_unused
from lume_unlearn.evaluation.harness import data_metadata, score
from lume_unlearn.quickstart import ROWS
from lume_unlearn.report.glossary import LEADERBOARD, Score
from lume_unlearn.training.finetune import finetune
from lume_unlearn.training.options import FinetuneConfig
from lume_unlearn.training.run import run

# Enough for the tiny model to memorise some two hundred short texts within seconds.
TARGET_EPOCHS, RETAIN_ONLY_EPOCHS = 24, 32
MEMORISING: dict[str, Any] = {"learning_rate": 4e-3, "batch_size": 8, "until": 0.0}
# Tuned for this tiny model; a model of 1B parameters needs other learning rates.
SHARED: dict[str, Any] = {"tuning": "full", "epochs": 16, "learning_rate": 3e-4, "batch_size": 16, "logging_steps": 5}
UNLEARNING: dict[str, dict[str, Any]] = {
    "gd": {"retain_weight": 3.0, "loss_on": "text"},
    "npo": {"retain_weight": 10.0},
}
EXPLANATION = """
target: memorised everything. GD and NPO: the target, unlearned by gradient difference and by negative preference
optimisation. retain-only: never saw the forget rows, as after perfect unlearning. With so few documents, an AUC from
0.35 to 0.65 is as good as 0.5; near 1, an attacker can still tell what was seen."""
SCORES = (*LEADERBOARD[1:], Score("lume_score", "partial_final_score", "partial final score", "high"))


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
    say(f"Everything is in {output}. Next, by hand:", *next_commands(output), sep="\n  ")


def _train_unlearn_score(output: Path, seed: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Return model name to the results of `score_folder`."""
    torch.set_num_threads(1)  # more threads slow down operations this small

    data = output / "data"
    say(f"[1/4] Writing a miniature LUME to {data}")
    shutil.copytree(ROWS, data)
    rows = locate.load_rows(data)
    subjects = locate.load_mmlu(str(data / "mmlu"))
    questions = [text for subject, items in subjects.items() for text in mmlu_texts(subject, items)]
    tokenizer = train_tokenizer([f"{row.input} {row.output}" for side in rows.values() for row in side] + questions)

    say("[2/4] Training a target that memorises all of it, and a model that never sees the forget rows")
    base, target, retain_only = output / "base", output / "target", output / "retain-only"
    save_random_model(tokenizer, base, seed)
    texts = base / "questions.jsonl"
    texts.write_text("".join(json.dumps({"document": text}) + "\n" for text in questions), encoding="utf-8")
    shared: dict[str, Any] = {"model": str(base), "data": str(data), "texts": str(texts), "seed": seed, **MEMORISING}
    finetune(FinetuneConfig(output=str(target), epochs=TARGET_EPOCHS, **shared))
    finetune(FinetuneConfig(output=str(retain_only), rows="retain", epochs=RETAIN_ONLY_EPOCHS, **shared))

    say("[3/4] Unlearning the forget rows from the target: gradient difference, then NPO")
    folders = {"target": target}
    for method, options in UNLEARNING.items():
        folder = folders[method.upper()] = output / f"unlearned-{method}"
        where: dict[str, Any] = {"model": str(target), "output": str(folder), "data": str(data)}
        run(RunConfig(method=method, seed=seed, **where, **SHARED, **options))
    folders["retain-only"] = retain_only

    say("[4/4] Scoring the four models with lm-eval's `lume` group")
    return {name: score_folder(folder, data, output / "results") for name, folder in folders.items()}


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


def save_random_model(tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> None:
    """Save a new Llama of half a million parameters, and the tokenizer."""
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
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def score_folder(model: Path, data: Path, results: Path) -> dict[str, Any]:
    """Score one model as `lm_eval --output_path <results> --log_samples` does; return task to metric to value."""
    tracker = EvaluationTracker(output_path=str(results))
    arguments = {"pretrained": str(model), "dtype": "float32"}
    metadata = data_metadata(data) | {"lume_partial": True}  # the rows have 3 subjects instead of MMLU's 57
    options = {"device": "cpu", "batch_size": 64, "log_samples": True, "evaluation_tracker": tracker}
    scored = score(arguments, metadata, **options)
    samples = scored.pop("samples")
    tracker.save_results_aggregated(scored, samples)
    for task in scored["configs"]:
        tracker.save_results_samples(task, samples[task])
    return dict(scored["results"])


def _table(scores: dict[str, dict[str, Any]]) -> str:
    lines = ["".join([f"{'score':26}", *(f"{name:>13}" for name in scores), "  good"])]
    for row in SCORES:
        values = (results[row.task].get(f"{row.metric},none") for results in scores.values())
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
        f"--output {folder}/lora --epochs 16 --learning_rate 2e-3 --retain_weight 10",
        f"LUME_DATA_DIR={folder}/data lm_eval --model lume-hf --model_args pretrained={folder}/target,"
        f"peft={folder}/lora --tasks lume --device cpu --batch_size 64 --output_path {folder}/results --log_samples",
    ]
