"""Makes the unlearned model's life hard and scores it again: does forgetting hold?

Each audit changes the model (fewer bits, a little more training) or the rows (other words, another frame) and runs the
same tasks of the harness over the result. Rows are changed by writing another data directory, so that no task needs to
know of audits.
"""

import copy
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lume_tasks.data import locate
from lume_tasks.data.rows import Row
from lume_tasks.metrics.text import exact_match
from lume_unlearn.config import ConfigError, require_unused
from lume_unlearn.data.encode import encode_rows
from lume_unlearn.data.inputs import named_directory
from lume_unlearn.evaluation import harness
from lume_unlearn.evaluation.options import AuditConfig
from lume_unlearn.evaluation.quantisation import round_to_nearest, weight_layers
from lume_unlearn.evaluation.quiet import NO_FINAL_SCORE, without_messages
from lume_unlearn.files import only_run, write_text, writing
from lume_unlearn.model import load
from lume_unlearn.model.forward import use_packing
from lume_unlearn.training.finetune import fine_tune

_log = logging.getLogger("lume_unlearn")

Sides = dict[str, list[Row]]


@dataclass(frozen=True)
class Subject:
    """What is audited: the model as loaded, its tokenizer, its rows."""

    config: AuditConfig
    model: Any
    tokenizer: Any
    rows: Sides

    def scores(self, name: str, rows: Sides, model: Any = None, **options: Any) -> dict[str, Any]:
        """The harness's results of the model (or a changed one) on these rows, kept in a data directory of the name."""
        from lm_eval.models.huggingface import HFLM

        folder = Path(self.config.output) / name
        with writing(Path(self.config.output)):
            folder.mkdir(parents=True, exist_ok=True)
            for side, side_rows in rows.items():
                lines = (json.dumps(vars(row), ensure_ascii=False) for row in side_rows)
                write_text(folder / f"{side}.jsonl", "\n".join(lines) + "\n")
        lm = HFLM(pretrained=model or self.model, tokenizer=self.tokenizer, batch_size=self.config.batch_size)
        tasks = tuple(task for task in harness.tasks_for(folder) if task in harness.GENERATION_TASKS)
        with without_messages(*NO_FINAL_SCORE):
            return harness.score(lm, harness.data_metadata(folder), tasks, **options)


def audit(config: AuditConfig) -> dict[str, dict[str, float]]:
    """Run the audits and write ``audit.json``.

    Returns:
        audit to the four overall means (see `lume_score`); `samples` has ``forget_knowledge`` and ``retain_knowledge``
        as the share of questions that any of the drawn answers gets right. ``plain`` is always there.

    Raises:
        ConfigError: an option that cannot work, rows that an audit cannot be run on, a model that cannot be quantised,
            or an output that cannot be written.
        DataError: faulty rows.
    """
    output = Path(config.output)
    require_unused(output)
    results: dict[str, dict[str, float]] = {}
    with only_run(output):
        rows = _rows(config)
        chosen = chosen_audits(config, rows)
        subject = _load(config, rows)
        if "quantised" in chosen:
            weight_layers(subject.model)
        for name in chosen:
            results |= AUDITS[name](subject)
            with writing(output):  # after each: nothing is lost if one fails
                write_text(output / "audit.json", json.dumps(results, indent=1) + "\n")
    return results


def audit_table(results: dict[str, dict[str, float]]) -> str:
    """The results as one Markdown table, an audit a row; a dash where a score does not apply."""
    columns = ("forget_regurgitation", "forget_knowledge", "retain_regurgitation", "retain_knowledge")
    lines = ["| audit | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in results.items():
        cells = (f"{scores[column]:.3f}" if column in scores else "-" for column in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rows(config: AuditConfig) -> Sides:
    rows = locate.load_rows(named_directory(config.data), config.split)
    if config.limit:
        rows = {side: random.Random(config.seed).sample(r, min(config.limit, len(r))) for side, r in rows.items()}
    return rows


def chosen_audits(config: AuditConfig, rows: Sides) -> list[str]:
    """The audits to run, ``plain`` first: those that were asked for, by default all; without those that lack rows.

    Raises:
        ConfigError: the rows do not suffice for an audit that was asked for.
    """
    asked = [name.strip() for name in (config.audits or "").split(",") if name.strip()]
    unknown = [name for name in asked if name not in AUDITS]
    if unknown:
        raise ConfigError(f"--audits {','.join(unknown)}: choose from {', '.join(AUDITS)}")
    chosen, faults = ["plain"], []
    for name in dict.fromkeys(asked or AUDITS):
        try:
            _require_rows(name, config, rows)
            chosen.append(name)
        except ConfigError as error:
            faults.append(f"--audits {name}: {error}")
    if faults and asked:
        raise ConfigError("\n".join(faults))
    for fault in faults:
        _log.warning("left out: %s", fault)
    return list(dict.fromkeys(chosen))


def _require_rows(name: str, config: AuditConfig, rows: Sides) -> None:
    if name.startswith("relearn_"):
        _relearning_rows(config, rows, name.removeprefix("relearn_"))
    if name == "samples" and not _has_questions(rows):
        raise ConfigError("needs questions (qa rows) among the forget rows and among the retain rows")


def _has_questions(rows: Sides) -> bool:
    return all(any(row.kind == "qa" for row in side_rows) for side_rows in rows.values())


def _load(config: AuditConfig, rows: Sides) -> Subject:
    if config.peft:
        model = load.merged_model(config.model, config.peft, config.trust_remote_code, option="--peft")
    else:
        model = load.load_model(config.model, torch.float32, config.trust_remote_code)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load.load_tokenizer(config.model, config.trust_remote_code)
    return Subject(config, model.to(device).eval(), tokenizer, rows)


def _plain(subject: Subject) -> dict[str, dict[str, float]]:
    return {"plain": harness.overall(subject.scores("plain", subject.rows))}


def _quantised(subject: Subject) -> dict[str, dict[str, float]]:
    """8 and 4 bits."""
    results = {}
    for bits in (8, 4):
        model, how = quantise(subject, bits)
        name = f"{bits}-bit ({how})"
        results[name] = harness.overall(subject.scores(f"{bits}-bit", subject.rows, model))
    return results


def quantise(subject: Subject, bits: int) -> tuple[Any, str]:
    """The model with weights of so many bits, by bitsandbytes on a GPU where it is installed, else rounded in place.

    Returns:
        (model, how it was done).
    """
    from transformers.utils.import_utils import is_bitsandbytes_available

    config = subject.config
    if is_bitsandbytes_available() and subject.model.device.type == "cuda" and not config.peft:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        quantisation = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)  # type: ignore[no-untyped-call]
        model = AutoModelForCausalLM.from_pretrained(
            config.model, quantization_config=quantisation, trust_remote_code=config.trust_remote_code
        )
        return model, "bitsandbytes"
    model = copy.deepcopy(subject.model)
    for module in weight_layers(model):
        if isinstance(module, Conv1D):  # GPT-2's layer holds its weight as (inputs, outputs)
            module.weight.data = round_to_nearest(module.weight.data.T, bits).T.contiguous()
        else:
            module.weight.data = round_to_nearest(module.weight.data, bits)
    return model, "rounded"


def _relearning_rows(config: AuditConfig, rows: Sides, side: str) -> tuple[list[Row], Sides]:
    """A sample of one side to train on, and the rows to score, without the forget rows of the sample's documents.

    Raises:
        ConfigError: there are too few rows.
    """
    sample = random.Random(config.seed).sample(rows[side], min(config.relearn_rows, len(rows[side]) // 2))
    if not sample:
        raise ConfigError(f"relearning needs at least two {side} rows")
    stems = {row.stem for row in sample}
    held_out = rows | {"forget": [row for row in rows["forget"] if row.stem not in stems]}
    if not held_out["forget"]:
        raise ConfigError(f"--relearn_rows {config.relearn_rows}: no forget row is left outside the sample")
    return sample, held_out


def _relearn(side: str) -> Callable[[Subject], dict[str, dict[str, float]]]:
    """A little training on a sample of one side, then the forget rows that were not in it."""

    def run(subject: Subject) -> dict[str, dict[str, float]]:
        config = subject.config
        sample, held_out = _relearning_rows(config, subject.rows, side)
        model = copy.deepcopy(subject.model)
        use_packing(model)
        texts = encode_rows(subject.tokenizer, sample, "answer", None, load.context_length(model))
        fine_tune(model, texts, config.relearn_epochs, config.relearn_rate, 8, seed=config.seed)
        model.set_attn_implementation("sdpa")
        name = f"relearned on {len(sample)} {side} rows"
        before = harness.overall(subject.scores(f"relearn-{side}-before", held_out))
        after = harness.overall(subject.scores(f"relearn-{side}", held_out, model))
        return {f"held out, before it was {name}": before, f"held out, {name}": after}

    return run


REPHRASINGS = (
    "Please answer briefly: {}",
    "I would like to know the following. {}",
    "Here is a question from a reader: {} What is the answer?",
)
PREFIX = "The weather was mild that day, and the market had just opened. "


def _other_words(subject: Subject) -> dict[str, dict[str, float]]:
    """The same rows in other words: rephrased, upper case, behind a prefix, after answered retain rows."""

    def changed(change: Callable[[Row], str], kinds: Sequence[str] = ("sc", "qa")) -> Sides:
        return {
            side: [replace(row, input=change(row)) for row in side_rows if row.kind in kinds]
            for side, side_rows in subject.rows.items()
        }

    shots = [row for row in subject.rows["retain"] if row.kind == "qa"][:3]
    frame = "".join(f"{row.input} {row.output}\n\n" for row in shots)
    results = {
        f"rephrased {i}": changed(lambda row, text=text: text.format(row.input), ("qa",))  # type: ignore[misc]
        for i, text in enumerate(REPHRASINGS if _has_questions(subject.rows) else (), 1)
    }
    results |= {
        "upper case": changed(lambda row: row.input.upper()),
        "prefix": changed(lambda row: PREFIX + row.input),
    }
    if shots:
        results[f"{len(shots)} answered retain rows in front"] = changed(lambda row: frame + row.input)
    return {name: harness.overall(subject.scores(f"words-{i}", rows)) for i, (name, rows) in enumerate(results.items())}


def _samples(subject: Subject) -> dict[str, dict[str, float]]:
    """Questions answered several times at temperature 1; any right answer counts."""
    config = subject.config
    rows = {side: [row for row in side_rows if row.kind == "qa"] for side, side_rows in subject.rows.items()}
    drawn: dict[tuple[str, str], bool] = {}
    for i in range(config.samples):
        results = subject.scores(
            "samples",
            rows,
            gen_kwargs={"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            torch_random_seed=config.seed + i,
            log_samples=True,
        )
        for sample in (s for task in results["samples"].values() for s in task):
            doc = sample["doc"]
            right = exact_match(doc["output"], sample["filtered_resps"][0]) == 1.0
            drawn[doc["side"], doc["id"]] = drawn.get((doc["side"], doc["id"]), False) or right
    shares = {
        f"{side}_knowledge": [right for (of, _), right in drawn.items() if of == side] for side in ("forget", "retain")
    }
    return {
        f"any of {config.samples} samples": {name: sum(right) / len(right) for name, right in shares.items() if right}
    }


AUDITS: dict[str, Callable[[Subject], dict[str, dict[str, float]]]] = {
    "plain": _plain,
    "quantised": _quantised,
    "relearn_forget": _relearn("forget"),
    "relearn_retain": _relearn("retain"),
    "other_words": _other_words,
    "samples": _samples,
}
