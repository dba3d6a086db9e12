"""`lume-unlearn card`: write the hub's page of a model folder, with its scores in the hub's ``model-index`` form."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lume_tasks.data import published
from lume_tasks.data.files import read_text
from lume_tasks.data.locate import MMLU_HUB_ID, MMLU_QUESTIONS, MMLU_SUBJECTS
from lume_tasks.errors import DataError, first_line, visible
from lume_unlearn.files import write_text
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.report.glossary import AUCS, LEADERBOARD, MEMBERS, TASKS, TWELVE, Score, task_number
from lume_unlearn.report.results import RECORD, Evaluation, Model, read_models

MARK = "<!-- written by lume-unlearn card -->"
_AUTOMATIC = (
    MARK,
    "[More Information Needed]",
    "This model card has been generated automatically",
)  # peft's, Trainer's
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_LISTS_OF_PATHS = ("alternatives", "adapters")  # options of a run; only the last components are published
_PATHS = ("model", "output", "data", "forget", "retain", "resume", *_LISTS_OF_PATHS)  # local, so not published
_ADAPTER_CONFIG = "adapter_config.json"
# Only these files of the folder are uploaded. Others may contain rows, paths, or checkpoints.
_PUBLISHED = re.compile(
    r"README\.md|(adapter_|generation_)?config\.json|adapter_model\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(modeling|configuration|tokenization)_\w+\.py"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    r"|vocab\.(json|txt)|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)
_SCORES = (*LEADERBOARD, *TWELVE, *(score for score in AUCS if score not in LEADERBOARD), MEMBERS)
_MIA = "lume_mia"
_TITLES = TASKS | {"lume_score": "all tasks", _MIA: "membership inference"}


def write_card(model_dir: Path, results: Sequence[str]) -> Path:
    """Write ``README.md`` into a folder that `lume-unlearn run` wrote: how the model was made, and its scores.

    Args:
        model_dir: folder with the model or adapter and its ``unlearning.json``.
        results: results files of the harness for this model, or folders that hold them.

    Raises:
        DataError: no record of the run, results of another model, or a README.md that a person wrote.
    """
    path = model_dir / "README.md"
    record = read_record(model_dir)
    model = own_results(model_dir, read_models(results))
    metadata = card_data(model_dir, record, model).to_yaml()
    card = ModelCard(f"---\n{metadata}\n---\n\n{card_text(model_dir, record, model)}")
    try:
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            if not any(mark in text for mark in _AUTOMATIC):
                raise DataError(f"{path}: not written by a program, so it is not replaced; move it away first")
        write_text(path, str(card))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    return path


def push_to_hub(model_dir: Path, repository: str) -> str:
    """Upload model, tokenizer and card, and no other file of the folder; return the address of the page.

    Raises:
        DataError: the hub refused or could not be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        # Full names, since the hub's patterns match in subfolders too.
        names = [path.name for path in model_dir.iterdir() if _PUBLISHED.fullmatch(path.name) and path.is_file()]
        adapter = _without_path(model_dir / _ADAPTER_CONFIG) if _ADAPTER_CONFIG in names else None
        if adapter is not None:
            names.remove(_ADAPTER_CONFIG)
            api.upload_file(path_or_fileobj=adapter, path_in_repo=_ADAPTER_CONFIG, repo_id=repository)
        api.upload_folder(repo_id=repository, folder_path=model_dir, allow_patterns=names)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        advice = "Log in with `hf auth login`, or set HF_TOKEN."
        raise DataError(f"--push_to_hub {repository}: {error}\n{advice}") from error
    return str(address)


def _without_path(path: Path) -> bytes | None:
    """Return an adapter's configuration with only the name of its model's folder; None if that model is on the hub."""
    content = json.loads(read_text(path))
    model = str(content.get("base_model_name_or_path") or "")
    if _on_the_hub(model):
        return None
    return json.dumps(content | {"base_model_name_or_path": Path(model).name}, indent=2).encode()


def read_record(model_dir: Path) -> dict[str, Any]:
    """Load what `lume-unlearn run` wrote about the run.

    Raises:
        DataError: the file is missing, or another version wrote it.
    """
    path = model_dir / RECORD
    try:
        record: dict[str, Any] = json.loads(read_text(path))
        lacking = {"config", "versions", "data_sha256", "seconds", "processes"} - set(record)
        lacking |= {"model", "tuning"} - set(record["config"])
        method = record["config"].get("method")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"no usable {RECORD} in it ({first_line(error)}); `lume-unlearn run` writes one"
        raise DataError(f"--model_dir {model_dir}: {message}") from error
    if lacking or method not in METHODS:
        lacking = lacking or {f"method {method}"}
        raise DataError(f"{path}: from another version of lume-unlearn? Missing or unknown: {', '.join(lacking)}")
    return record


def own_results(model_dir: Path, models: Sequence[Model]) -> Model:
    """Return the model that was scored in this folder, or in a copy with the same record.

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
    if scored.resolve() == model_dir.resolve():
        return True
    record = scored / RECORD
    return record.is_file() and record.read_bytes() == (model_dir / RECORD).read_bytes()


def card_data(model_dir: Path, record: dict[str, Any], model: Model) -> ModelCardData:
    """Return the card's metadata: its base model, and each score that has a value as an entry of ``model-index``."""
    config = record["config"]
    values = [(score, model.score(score.task, score.metric)) for score in _SCORES]
    return ModelCardData(
        model_name=visible(model_dir.resolve().name),
        base_model=config["model"] if _on_the_hub(config["model"]) else None,
        library_name="peft" if config["tuning"] == "lora" else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "lume", config["method"]],
        eval_results=[_eval_result(model, score, value) for score, value in values if value is not None],
    )


def _eval_result(model: Model, score: Score, value: float) -> EvalResult:
    data = source(model, score)
    return EvalResult(
        task_type="text-generation",
        dataset_type=data.kind,
        dataset_name=data.name,
        dataset_config=None if score.metric == "mmlu" else score.task,  # the hub tells entries apart by it
        dataset_split=data.split,
        metric_type=score.metric,
        metric_name=_full_name(model, score),
        metric_value=round(value, 6),
        source_name="lm-evaluation-harness",
        source_url="https://github.com/EleutherAI/lm-evaluation-harness",
    )


@dataclass(frozen=True)
class Source:
    """The documents of a score: a name with their number, the hub's type of the data set, and its split if known."""

    name: str
    kind: str
    split: str | None


def source(model: Model, score: Score) -> Source:
    """Return the documents of a score that the model has. LUME and MMLU are named only if the results prove it."""
    one = model.evaluation(score.task)
    assert one is not None, "the model has the score"
    if score.metric == "mmlu":
        return _mmlu(one)
    parts = {"mia_score": (_MIA,), "final_score": (*TASKS, _MIA)}.get(score.metric, tuple(TASKS))
    tasks = [task for task in parts if task in one.scores] if score.task == "lume_score" else [score.task]
    rows = sum(one.count(task) or 0 for task in tasks)
    origin = _lume(one, tasks)
    return Source(f"{origin.name}, {_TITLES[score.task]}, {rows:,} rows", origin.kind, origin.split)


def _lume(one: Evaluation, tasks: Sequence[str]) -> Source:
    """Return whether the documents of these tasks are those of LUME, by the digests that the tasks log."""
    digests = {_digest(one, task) for task in tasks}
    if not digests or not digests <= {published.MIA, *published.SPLITS}:
        return Source("own data", "other", visible(one.split))
    splits = {published.SPLITS[digest] for digest in digests if digest != published.MIA}
    split = splits.pop() if len(splits) == 1 else visible(one.split)
    whole = all(one.section("n-samples").get(task, {}).get("original") == one.count(task) for task in tasks)
    return Source("LUME" if whole else "part of LUME", "lume", split)


def _mmlu(one: Evaluation) -> Source:
    """Return whether the multiple-choice questions are all of MMLU's test split, by subjects and numbers."""
    subjects = _subjects(one)
    questions = sum(subjects.values())
    if set(subjects) == set(MMLU_SUBJECTS) and questions == MMLU_QUESTIONS:
        return Source("MMLU", MMLU_HUB_ID, "test")
    name = f"multiple choice, {questions:,} questions in {len(subjects)} subjects, not all of MMLU"
    return Source(name, "multiple-choice", None)


def _subjects(one: Evaluation) -> dict[str, int]:
    """Return each subject of MMLU that was scored, with the number of questions."""
    prefix = "lume_mmlu_"
    return {
        task.removeprefix(prefix): one.count(task) or 0 for task in one.section("n-samples") if task.startswith(prefix)
    }


def _digest(one: Evaluation, task: str) -> str:
    """Digest of a task's documents before any limit; earlier versions logged none."""
    return str(one.metadata(task).get(published.DIGEST, "unknown"))


def card_text(model_dir: Path, record: dict[str, Any], model: Model) -> str:
    """Return the card's text in Markdown, as card.md.j2 lays it out."""
    config = record["config"]
    options = {name: value for name, value in config.items() if name not in _PATHS and value is not None}
    for name in _LISTS_OF_PATHS:
        if config.get(name) is not None:
            options[name] = ", ".join(Path(path.strip()).name for path in config[name].split(","))
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["code"] = _code
    return templates.get_template("card.md.j2").render(
        mark=MARK,
        name=model_dir.resolve().name,
        lora=config["tuning"] == "lora",
        base=config["model"] if _on_the_hub(config["model"]) else Path(config["model"]).name,
        method=METHODS[config["method"]],
        rows=model.evaluations[0].rows,
        scores=_score_rows(model),
        documents=_scored_documents(model),
        record=record,
        options=options,
        files=[(Path(file).name, digest) for file, digest in record["data_sha256"].items()],
    )


def _score_rows(model: Model) -> list[tuple[str, str, str, str]]:
    rows = []
    for score in _SCORES:
        value, interval = model.score(score.task, score.metric), model.interval(score.task, score.metric)
        if value is not None:
            ends = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
            rows.append((_full_name(model, score), f"{value:.3f}", ends, score.good))
    return rows


def _scored_documents(model: Model) -> list[tuple[str, str, int | None, str]]:
    """Return (task, data, number of documents, SHA-256) of every task of LUME that was scored, and of MMLU."""
    rows: list[tuple[str, str, int | None, str]] = []
    for task in (*TASKS, _MIA):
        one = model.evaluation(task)
        if one:
            rows.append((_TITLES[task], _lume(one, [task]).name, one.count(task), _digest(one, task)))
    score = model.evaluation("lume_score")
    if score and "mmlu" in score.scores["lume_score"]:
        rows.append(("general knowledge", _mmlu(score).name, sum(_subjects(score).values()), "unknown"))
    return rows


def _full_name(model: Model, score: Score) -> str:
    if score.metric == "mmlu" and source(model, score).kind != MMLU_HUB_ID:
        return "multiple choice"
    return f"{task_number(score.task)}, {score.name}" if score.task in TASKS else score.name


def _code(value: object) -> str:
    """Return any value as inline code on one line, in which no markup has an effect."""
    text = visible(str(value)).replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _on_the_hub(model: str) -> bool:
    return _HUB_NAME.match(model) is not None and not Path(model).exists()
