"""`lume-unlearn card`: the page of a model folder on the hub, with its scores in the hub's `model-index` form."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lume_tasks.data.files import file_fault, read_text
from lume_tasks.data.locate import MMLU_HUB_ID
from lume_tasks.errors import DataError, visible
from lume_unlearn.files import write_text
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.report.glossary import ATTACKED, AUCS, LEADERBOARD, MEMBERS, TASKS, TWELVE, Score
from lume_unlearn.report.results import RECORD, Model, read_models
from lume_unlearn.report.scored_data import scored_rows, source

MARK = "<!-- written by lume-unlearn card -->"
# What peft and transformers leave in cards of their own, which may be replaced.
_OTHERS_MARKS = ("[More Information Needed]", "This model card has been generated automatically")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
# Options of a run that hold paths of this machine, which are not published; of the last two the last component is.
_PATHS = ("model", "output", "data", "forget", "retain", "resume", "alternatives", "adapters")
_ADAPTER_CONFIG = "adapter_config.json"
# All that goes to the hub, from the folder itself. Anything else may be logged rows, paths, or checkpoints: what the
# harness writes among them, if somebody had it write there.
_PUBLISHED = re.compile(
    r"README\.md|(adapter_|generation_)?config\.json|adapter_model\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(modeling|configuration|tokenization)_\w+\.py"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    r"|vocab\.(json|txt)|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)
_SCORES = (*LEADERBOARD, *TWELVE, *(score for score in AUCS if score not in LEADERBOARD), MEMBERS)


def write_card(model_dir: Path, results: Sequence[str]) -> Path:
    """Write ``README.md`` into a folder that `lume-unlearn run` wrote: how it was made, and how it scored.

    Args:
        model_dir: folder with the model or adapter and its ``unlearning.json``.
        results: results files of the harness for this model, or folders that hold them.

    Raises:
        DataError: no record of the run, results of another model, or a README.md that somebody wrote.
    """
    path = model_dir / "README.md"
    if path.exists() and not _by_a_program(path):
        raise DataError(f"{path} was not written by a program; move it away to have a card written in its place")
    record = read_record(model_dir)
    model = own_results(model_dir, read_models(results))
    card = ModelCard(
        f"---\n{card_data(model_dir, record, model).to_yaml()}\n---\n\n{card_text(model_dir, record, model)}"
    )
    try:
        write_text(path, str(card))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    return path


def _by_a_program(path: Path) -> bool:
    try:
        if fault := file_fault(path):
            raise DataError(f"{path}: {fault}")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return any(mark in text for mark in (MARK, *_OTHERS_MARKS))


def push_to_hub(model_dir: Path, repository: str) -> str:
    """Upload model, tokenizer and card out of the folder; all else in it stays here.

    Returns:
        The address of the page.

    Raises:
        DataError: the hub refused or could not be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        # Whole names, since the hub's patterns reach into folders.
        names = [path.name for path in model_dir.iterdir() if _PUBLISHED.fullmatch(path.name) and path.is_file()]
        adapter = _without_path(model_dir / _ADAPTER_CONFIG) if _ADAPTER_CONFIG in names else None
        if adapter is not None:
            names.remove(_ADAPTER_CONFIG)
            api.upload_file(path_or_fileobj=adapter, path_in_repo=_ADAPTER_CONFIG, repo_id=repository)
        api.upload_folder(repo_id=repository, folder_path=model_dir, allow_patterns=names)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise DataError(
            f"--push_to_hub {repository}: {error}\nLog in with `hf auth login`, or set HF_TOKEN."
        ) from error
    return str(address)


def _without_path(path: Path) -> bytes | None:
    """An adapter's configuration with the last component of its model's folder; None where that is on the hub."""
    content = json.loads(read_text(path))
    model = str(content.get("base_model_name_or_path") or "")
    if _on_the_hub(model):
        return None
    return json.dumps(content | {"base_model_name_or_path": Path(model).name}, indent=2).encode()


def read_record(model_dir: Path) -> dict[str, Any]:
    """What `lume-unlearn run` wrote about the run.

    Raises:
        DataError: the file is missing or of another kind.
    """
    path = model_dir / RECORD
    try:
        record: dict[str, Any] = json.loads(read_text(path))
        lacking = {"config", "versions", "data_sha256", "seconds", "processes"} - set(record)
        lacking |= {name for name in ("config", "versions", "data_sha256") if not isinstance(record.get(name), dict)}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"--model_dir {model_dir}: no usable {RECORD} in it; `lume-unlearn run` writes one") from error
    if not lacking:
        texts = {name: record["config"].get(name) for name in ("method", "model", "tuning")}
        lacking = {name for name, text in texts.items() if not isinstance(text, str)}
        lacking |= set() if texts["method"] in [*METHODS] else {"method"}
    if lacking:
        raise DataError(
            f"{path}: written by another version of lume-unlearn? Missing or unknown: {', '.join(sorted(lacking))}"
        )
    return record


def own_results(model_dir: Path, models: Sequence[Model]) -> Model:
    """The one among the models that the folder holds: scored in this folder, or in a copy with the same record.

    Raises:
        DataError: there is none, or there are several (of other splits or settings).
    """
    own = [model for model in models if _is_copy(Path(model.path), model_dir)]
    if len(own) == 1:
        return own[0]
    if own:
        fault = f"hold several results of {model_dir}, with other splits or settings: " + ", ".join(m.name for m in own)
    else:
        fault = f"are not of {model_dir.resolve()}, but of " + ", ".join(model.path for model in models)
    raise DataError(f"--results: these {fault}. Name the results of this folder in one setting.")


def _is_copy(scored: Path, model_dir: Path) -> bool:
    """Whether both are the same folder, or hold the same record of a run, byte for byte."""
    try:
        if scored.resolve() == model_dir.resolve():
            return True
        return (scored / RECORD).read_bytes() == (model_dir / RECORD).read_bytes()
    except (OSError, RuntimeError, ValueError):  # moved or never here; links in a circle, NUL characters
        return False


def card_data(model_dir: Path, record: dict[str, Any], model: Model) -> ModelCardData:
    """The card's metadata: where it comes from, and each score that has a value as one entry of ``model-index``."""
    config = record["config"]
    return ModelCardData(
        model_name=visible(model_dir.resolve().name),
        base_model=config["model"] if _on_the_hub(config["model"]) else None,
        library_name="peft" if config["tuning"] == "lora" else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "lume", config["method"]],
        eval_results=[
            _eval_result(model, score, value)
            for score in _SCORES
            if (value := model.score(score.task, score.metric)) is not None
        ],
    )


def _eval_result(model: Model, score: Score, value: float) -> EvalResult:
    data = source(model, score)
    return EvalResult(
        task_type="text-generation",
        dataset_type=data.kind,
        dataset_name=data.name,
        dataset_config=None if score.metric == "mmlu" else score.task,  # what the hub tells entries apart by
        dataset_split=data.split,
        metric_type=score.metric,
        metric_name=_full_name(model, score),
        metric_value=round(value, 6),
        source_name="lm-evaluation-harness",
        source_url="https://github.com/EleutherAI/lm-evaluation-harness",
    )


def card_text(model_dir: Path, record: dict[str, Any], model: Model) -> str:
    """The card's text in Markdown; no rows, no paths, no text that a model generated."""
    config = record["config"]
    method = METHODS[config["method"]]
    base = config["model"] if _on_the_hub(config["model"]) else Path(config["model"]).name
    kind = "LoRA adapter of" if config["tuning"] == "lora" else "model made from"
    options = {name: value for name, value in config.items() if name not in _PATHS and value is not None}
    for name in ("alternatives", "adapters"):
        if config.get(name) is not None:
            options[name] = ", ".join(Path(path.strip()).name for path in str(config[name]).split(","))
    processes = f"{record['processes']} process{'' if record['processes'] == 1 else 'es'}"
    sums = [(_code(Path(file).name), _code(digest)) for file, digest in record["data_sha256"].items()]
    return f"""{MARK}

# {_text(model_dir.resolve().name)}

A {kind} {_code(base)} by unlearning with {method.title} ({method.citation}).
It was trained to forget one set of texts and to keep another; the scores say how far each succeeded. A low score on
forget rows does not mean that the texts have left the weights: look at the attacks' AUC, which is 0.5 only where nobody
can tell what was in the training data. {ATTACKED}

## Scores

By the tasks of [LUME](https://arxiv.org/abs/2502.15097) in lm-evaluation-harness, {_text(model.evaluations[0].sample)}.

{_table(("score", "value", "95 % interval", "good"), _score_rows(model))}

Scored on these documents; LUME and MMLU are named only where they are the published ones:

{_table(("task", "data", "documents", "SHA-256"), [map(_text, row) for row in scored_rows(model)])}

## How it was made

In {_text(record["seconds"])} s on {_text(processes)}, with these options:

{_table(("option", "value"), [(_text(name), _code(value)) for name, value in options.items()])}

Trained on these files:

{_table(("file", "SHA-256"), sums)}

Versions:

{_table(("package", "version"), [map(_text, pair) for pair in record["versions"].items()])}
"""


def _score_rows(model: Model) -> list[tuple[str, str, str, str]]:
    rows = []
    for score in _SCORES:
        value, interval = model.score(score.task, score.metric), model.interval(score.task, score.metric)
        if value is not None:
            ends = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
            rows.append((_full_name(model, score), f"{value:.3f}", ends, score.good))
    return rows


def _full_name(model: Model, score: Score) -> str:
    if score.metric == "mmlu" and source(model, score).kind != MMLU_HUB_ID:
        return "multiple choice"
    return f"{TASKS[score.task].partition(':')[0]}, {score.name}" if score.task in TASKS else score.name


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """A value as Markdown that shows it and does nothing else: no markup, no link, on one line."""
    text = visible(str(value)).replace("\n", " ")
    return re.sub(r"[&<>|`*\[\]\\]", lambda found: f"&#{ord(found.group())};", text)


def _code(value: object) -> str:
    """The same in the type of code, where markup means nothing and only its end and the table's bars count."""
    text = visible(str(value)).replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _on_the_hub(model: str) -> bool:
    return _HUB_NAME.match(model) is not None and not Path(model).exists()
