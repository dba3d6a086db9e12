"""`lume-unlearn card`: write the hub's page of a model folder, with its scores in the hub's ``model-index`` form."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from lume_tasks.data import published
from lume_tasks.data.files import read_text
from lume_tasks.data.locate import MMLU_HUB_ID, MMLU_QUESTIONS
from lume_tasks.errors import DataError, first_line, visible
from lume_unlearn.files import write_text
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.report import template
from lume_unlearn.report.glossary import AUCS, LEADERBOARD, MEMBERS, TASKS, TWELVE, Score, task_number
from lume_unlearn.report.results import RECORD, Evaluation, Model, read_models

MARK = "<!-- written by lume-unlearn card -->"
# Cards with one of these are replaced: our own, peft's and Trainer's.
_AUTOMATIC = (MARK, "[More Information Needed]", "This model card has been generated automatically")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_PATHS = ("model", "output", "data", "forget", "retain", "resume", "alternatives")  # local, so not published
_ADAPTER_CONFIG = "adapter_config.json"
# Only these files of the folder are uploaded. Others may contain rows, paths, or checkpoints.
_PUBLISHED = re.compile(
    r"README\.md|(generation_)?config\.json|adapter_model\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(modeling|configuration|tokenization)_\w+\.py"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    r"|vocab\.(json|txt)|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)
_SCORES = dict.fromkeys((*LEADERBOARD, *chain(*TWELVE.values()), *AUCS, MEMBERS))  # in order, each once
_TITLES = TASKS | {"lume_score": "all tasks", "lume_mia": "membership inference"}


class Data(NamedTuple):
    """What a score was computed from: its name, the hub's type of data set, and the split if known."""

    name: str
    kind: str
    split: str | None


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
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else MARK
    if not any(mark in text for mark in _AUTOMATIC):
        raise DataError(f"{path}: not written by a program, so it is not replaced; move it away first")
    try:
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
        adapter = model_dir / _ADAPTER_CONFIG
        if adapter.exists():
            content = json.loads(read_text(adapter))
            content["base_model_name_or_path"] = _without_folder(content["base_model_name_or_path"])
            data = json.dumps(content, indent=2).encode()
            api.upload_file(path_or_fileobj=data, path_in_repo=_ADAPTER_CONFIG, repo_id=repository)
        api.upload_folder(repo_id=repository, folder_path=model_dir, allow_patterns=names)
    except (OSError, ValueError) as error:  # HfHubHTTPError is an OSError
        advice = "Log in with `hf auth login`, or set HF_TOKEN."
        raise DataError(f"--push_to_hub {repository}: {error}\n{advice}") from error
    return str(address)


def read_record(model_dir: Path) -> dict[str, Any]:
    """Load what `lume-unlearn run` wrote about the run.

    Raises:
        DataError: the file is missing, or another version wrote it.
    """
    path = model_dir / RECORD
    try:
        record: dict[str, Any] = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); `lume-unlearn run` writes it") from error
    complete = {"config", "versions", "data_sha256", "seconds", "processes"} <= set(record)
    if not complete or record["config"].get("method") not in METHODS:
        raise DataError(f"{path}: written by another version of lume-unlearn; use that version")
    return record


def own_results(model_dir: Path, models: Sequence[Model]) -> Model:
    """Return the model that was scored in this folder.

    Raises:
        DataError: there is none, or there are several (of other splits or settings).
    """
    own = [model for model in models if Path(model.path).resolve() == model_dir.resolve()]
    if len(own) != 1:
        found = "; ".join(f"{model.path} ({model.evaluations[0].settings})" for model in models)
        raise DataError(f"--results: name results of {model_dir.resolve()} in one setting; these are of {found}")
    return own[0]


def card_data(model_dir: Path, record: dict[str, Any], model: Model) -> ModelCardData:
    """Return the card's metadata: its base model, and each score that has a value as an entry of ``model-index``."""
    config = record["config"]
    return ModelCardData(
        model_name=visible(model_dir.resolve().name),
        base_model=config["model"] if _on_the_hub(config["model"]) else None,
        library_name="peft" if config["tuning"] == "lora" else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "lume", config["method"]],
        eval_results=[_eval_result(model, score, data) for score, data in card_scores(model)],
    )


def _eval_result(model: Model, score: Score, data: Data) -> EvalResult:
    is_mmlu = score.metric == "mmlu"
    return EvalResult(
        task_type="text-generation",
        dataset_type=data.kind,
        dataset_name=data.name if is_mmlu else f"{data.name}, {_TITLES[score.task]}",
        dataset_config=None if is_mmlu else score.task,  # the hub tells entries apart by it
        dataset_split=data.split,
        metric_type=score.metric,
        metric_name=score.name,
        metric_value=round(model.score(score.task, score.metric) or 0.0, 6),
        source_name="lm-evaluation-harness",
        source_url="https://github.com/EleutherAI/lm-evaluation-harness",
    )


def card_scores(model: Model) -> list[tuple[Score, Data]]:
    """Return the scores that have a value, by names that are unique in the card, and their data."""
    found = []
    for score in _SCORES:
        one = model.evaluation(score.task)
        if one is None or model.score(score.task, score.metric) is None:
            continue
        data = scored_data(one, score)
        if score.task in TASKS:
            score = replace(score, name=f"{task_number(score.task)}, {score.name}")
        elif score.metric == "mmlu" and data.kind != MMLU_HUB_ID:
            score = replace(score, name="multiple choice")
        found.append((score, data))
    return found


def scored_data(one: Evaluation, score: Score) -> Data:
    """Name the data of a score LUME or MMLU only if the documents are the published ones.

    LUME is recognised by the digests that the tasks log, MMLU by the number of questions.
    """
    if score.metric == "mmlu":
        counts = [one.count(task) or 0 for task in one.content["n-samples"] if task.startswith("lume_mmlu_")]
        if sum(counts) == MMLU_QUESTIONS:
            return Data("MMLU", MMLU_HUB_ID, "test")
        return Data(f"multiple choice, {sum(counts):,} questions, not all of MMLU", "multiple-choice", None)
    tasks = [score.task]
    if score.task == "lume_score":
        tasks = [task for task in (*TASKS, "lume_mia") if task in one.scores]
    digests = {one.digest(task) for task in tasks}
    if not digests or not digests <= {published.MIA, *published.SPLITS}:
        return Data("own data", "other", visible(one.split))
    splits = {published.SPLITS[digest] for digest in digests if digest != published.MIA}
    split = splits.pop() if len(splits) == 1 else visible(one.split)
    return Data("part of LUME" if one.config.get("limit") else "LUME", "lume", split)


def card_text(model_dir: Path, record: dict[str, Any], model: Model) -> str:
    """Return the card's text in Markdown, as card.md.j2 lays it out."""
    config = record["config"]
    return template("card.md.j2", keep_trailing_newline=True).render(
        code=_code,
        mark=MARK,
        name=model_dir.resolve().name,
        base=_without_folder(config["model"]),
        method=METHODS[config["method"]],
        model=model,
        scores=card_scores(model),
        record=record,
        options={name: value for name, value in config.items() if name not in _PATHS and value is not None},
        files=[(Path(file).name, digest) for file, digest in record["data_sha256"].items()],
    )


def _code(value: object) -> str:
    """Return any value as inline code on one line, in which no markup has an effect."""
    text = visible(str(value)).replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _on_the_hub(model: str) -> bool:
    return _HUB_NAME.match(model) is not None and not Path(model).exists()


def _without_folder(model: str) -> str:
    """Return a model's name on the hub, or the name of its folder without the path."""
    return model if _on_the_hub(model) else Path(model).name
