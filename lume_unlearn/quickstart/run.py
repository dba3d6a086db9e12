"""`lume-unlearn quickstart`: everything once, offline, on a miniature LUME and a model tiny enough for any laptop."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lume_tasks.data import locate
from lume_unlearn.config import RunConfig, require_unused
from lume_unlearn.data.encode import Tokens, encode_row
from lume_unlearn.evaluation.harness import data_metadata, score
from lume_unlearn.model import packing
from lume_unlearn.quickstart.miniature import write_miniature
from lume_unlearn.training.finetune import fine_tune
from lume_unlearn.training.run import run

# How the tiny model is made to memorise some two hundred short texts within seconds.
EPOCHS = {"target": 24, "retain-only": 32}
BATCH = 8
PEAK_RATE = 4e-3
WARMUP_STEPS = 30
# Tuned for a model of this size, whose memory is fresh; one of 1B needs other rates.
UNLEARNING: dict[str, dict[str, Any]] = {
    "gd": {"retain_weight": 3.0, "loss_on": "text"},
    "npo": {"retain_weight": 10.0},
}
SHARED: dict[str, Any] = {"tuning": "full", "epochs": 16, "learning_rate": 3e-4, "batch_size": 16, "logging_steps": 5}


def quickstart(output: Path, seed: int = 0) -> None:
    """Generate data, train a target and a retain-only model, unlearn, score all four, print one table.

    Everything stays in ``output``: ``data/`` (a LUME data directory), ``target/``, ``retain-only/``, ``unlearned-gd/``
    and ``unlearned-npo/``, and ``results/`` (the harness's, for `lume-unlearn report` and `card`).

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    require_unused(output)
    started = time.time()
    output.mkdir(parents=True, exist_ok=True)
    with library_output_to(output / "quickstart.log") as stdout:
        console = Console(file=stdout)
        scores = _everything(output, seed, console)
    _print_result(Console(), scores, output, time.time() - started)


def _everything(output: Path, seed: int, console: Console) -> dict[str, dict[str, Any]]:
    """The four steps; returns the scores of each model."""
    torch.set_num_threads(1)  # operations this small only wait for other threads, above all on a busy machine

    console.print(f"[1/4] Writing a miniature LUME to {output / 'data'}")
    write_miniature(output / "data", seed)
    rows = locate.load_rows(output / "data")
    questions = [
        text for subject in locate.load_mmlu(str(output / "data" / "mmlu")).items() for text in asked(*subject)
    ]
    tokenizer = train_tokenizer([f"{row.input} {row.output}" for side in rows.values() for row in side] + questions)

    console.print("[2/4] Training a target that memorises all of it, and a model that never sees the forget rows")
    texts = {side: [encode_row(tokenizer, row, "text") for row in side_rows] for side, side_rows in rows.items()}
    lessons = [Tokens(ids, ids) for ids in (tuple(tokenizer.encode(text)) for text in questions)]
    folders = {name: output / name for name in EPOCHS}
    memorise(texts["forget"] + texts["retain"] + lessons, tokenizer, folders["target"], EPOCHS["target"], seed)
    memorise(texts["retain"] + lessons, tokenizer, folders["retain-only"], EPOCHS["retain-only"], seed)

    console.print("[3/4] Unlearning the forget rows from the target: gradient difference, then NPO")
    for method, options in UNLEARNING.items():
        folders[method] = output / f"unlearned-{method}"
        target, unlearned, data = str(folders["target"]), str(folders[method]), str(output / "data")
        run(RunConfig(model=target, output=unlearned, method=method, data=data, seed=seed, **SHARED, **options))

    console.print("[4/4] Scoring the four models with lm-eval's `lume` group")
    return {name: score_folder(folder, output / "data", output / "results") for name, folder in folders.items()}


def train_tokenizer(texts: Sequence[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A byte-level BPE without BOS, as OLMo's, from these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|padding|>", model_max_length=1024
    )


def asked(subject: str, rows: list[dict[str, Any]]) -> list[str]:
    """The questions of one MMLU-like subject as `lume_mmlu` asks them, each with its answer."""
    from lume_tasks.tasks.score import SubjectTask

    task = SubjectTask(subject, rows, version=None)
    return [f"{task.fewshot_context(doc, num_fewshot=0)} {'ABCD'[doc['answer']]}" for doc in task.eval_docs]


def memorise(texts: Sequence[Tokens], tokenizer: PreTrainedTokenizerFast, folder: Path, epochs: int, seed: int) -> None:
    """Train a tiny Llama on these texts until it can repeat them, and save it with the tokenizer."""
    set_seed(seed)
    model = tiny_model(tokenizer)
    fine_tune(model, texts, epochs, PEAK_RATE, BATCH, WARMUP_STEPS, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of half a million parameters with random weights."""
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
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(packing.IMPLEMENTATION)
    return model


def score_folder(model: Path, data: Path, results: Path) -> dict[str, Any]:
    """The `lume` group's numbers for one model on the CPU: task to metric to value.

    The harness's results and samples go below ``results``, as with `lm_eval --output_path ... --log_samples`.
    """
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(results))
    arguments = {"pretrained": str(model), "dtype": "float32"}
    # The miniature has three subjects of its own in place of MMLU's 57.
    metadata = data_metadata(data) | {"lume_partial": True}
    options = {"device": "cpu", "batch_size": 64, "log_samples": True, "evaluation_tracker": tracker}
    scored = score(arguments, metadata, **options)
    samples = scored.pop("samples")
    tracker.save_results_aggregated(scored, samples)
    for task in scored["configs"]:
        tracker.save_results_samples(task, samples[task])
    return dict(scored["results"])


@contextmanager
def library_output_to(log: Path) -> Iterator[TextIO]:
    """Send what libraries and their child processes print to a file; yields the real standard output."""
    sys.stdout.flush()
    stdout, stderr = os.dup(1), os.dup(2)
    with open(log, "a", encoding="utf-8") as file, os.fdopen(os.dup(stdout), "w", encoding="utf-8") as real:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield real
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for saved, descriptor in ((stdout, 1), (stderr, 2)):
                os.dup2(saved, descriptor)
                os.close(saved)


def _print_result(console: Console, scores: dict[str, dict[str, Any]], output: Path, seconds: float) -> None:
    names = {"target": "target", "gd": "GD", "npo": "NPO", "retain-only": "retain-only"}
    table = Table(title="Miniature LUME, scored by lm-eval")
    table.add_column("score")
    for name in names.values():
        table.add_column(name, justify="right")
    table.add_column("good")
    for label, task, metric, good in (
        ("forget: text repeated", "lume_score", "forget_regurgitation", "low"),
        ("forget: facts known", "lume_score", "forget_knowledge", "low"),
        ("retain: text repeated", "lume_score", "retain_regurgitation", "high"),
        ("retain: facts known", "lume_score", "retain_knowledge", "high"),
        ("attack AUC", "lume_mia", "loss_auc", "0.5"),
        ("MMLU-like", "lume_mmlu", "acc", "as before"),
        ("task aggregate", "lume_score", "task_aggregate", "high"),
        ("partial final score", "lume_score", "partial_final_score", "high"),
    ):
        values = (scores[name][task].get(f"{metric},none") for name in names)
        table.add_row(label, *("-" if value is None else f"{value:.3f}" for value in values), good)
    console.print(table)
    console.print(
        "target: memorised everything. GD and NPO: the target, unlearned by gradient difference and by negative "
        "preference optimisation. retain-only: never saw the forget rows, which is what perfect unlearning would give. "
        "With so few documents, an AUC from 0.35 to 0.65 is as good as 0.5; where it stays at 1 after unlearning, a "
        "model that no longer repeats a text still betrays that it saw it."
    )
    console.print(f"Done in {seconds:.0f} s. Everything is in {output}. Next, by hand:")
    for command in next_commands(output):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def next_commands(output: Path) -> list[str]:
    """Commands to go on with after the quickstart, in an order in which each finds what it needs."""
    names = ("data", "target", "lora", "results", "report.html", "unlearned-npo")
    data, target, lora, results, page, npo = (shlex.quote(str(output / name)) for name in names)
    model = shlex.quote(f"pretrained={output / 'target'},peft={output / 'lora'}")
    return [
        f"lume-unlearn report {results} --output {page}",
        f"lume-unlearn card --model_dir {npo} --results {results}",
        f"lume-tasks check {data}",
        f"lume-unlearn run --method npo --tuning lora --model {target} --data {data} --output {lora} "
        "--epochs 16 --learning_rate 2e-3 --retain_weight 10",
        f"LUME_DATA_DIR={data} lm_eval --model hf --model_args {model} --tasks lume --device cpu --batch_size 64 "
        f"--output_path {results} --log_samples",
    ]
