"""`lume-unlearn card`: write the model card of a model folder, with its scores in the hub's ``model-index`` form."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from lume_tasks.data import published
from lume_tasks.data.locate import MMLU_HUB_ID, MMLU_QUESTIONS
from lume_tasks.errors import DataError, first_line, visible
from lume_unlearn.files import write_text
from lume_unlearn.report import template
from lume_unlearn.report.glossary import AUCS, LEADERBOARD, MEMBERS, SWAPPED, TASKS, TWELVE, Score, task_number
from lume_unlearn.report.results import Evaluation, Model, read_models

MARK = "<!-- written by lume-unlearn card -->"
# Cards that contain one of these are replaced: our own, peft's and Trainer's.
_AUTOMATIC = (MARK, "[More Information Needed]", "This model card has been generated automatically")
_CHOICES = {"divergence", "retain_term", "loss_on", "weights", "reference_copy", "attention", "on_collapse", "robust"}
_CHOICES |= {"optim", "lr_scheduler_type", "eval_strategy", "save_strategy", "lora_targets"}
"""Options whose text is published. Text of any other option may be a local path, whose folders can name a person."""
_DATA_FILE = re.compile(r"(forget|retain)(\.jsonl|\.parquet)?")
RECORD, _ADAPTER_CONFIG = "unlearning.json", "adapter_config.json"
_RECORDED = dict.fromkeys(("title", "source", "tuning", "seed", "processes", "seconds"))
_GROUPS = ("method_options", "arguments", "lora", "data_sha256", "versions")
# Only these files of the folder are uploaded. Others may contain rows, paths, or checkpoints.
_PUBLISHED = re.compile(
    r"README\.md|(generation_)?config\.json|adapter_model\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(modeling|configuration|tokenization)_\w+\.py"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.jinja"
    r"|vocab\.(json|txt)|merges\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)
_SCORES = dict.fromkeys((*LEADERBOARD, *chain(*TWELVE.values()), *AUCS, MEMBERS, *chain(*SWAPPED.values())))
"""The scores of the card in order, each once."""
_TITLES = TASKS | {"lume_score": "all tasks", "lume_mia": "membership inference", "lume_swap": "swap test"}


def write_card(model_dir: Path, results: Sequence[str]) -> Path:
    """Write ``README.md`` into a folder that `lume-unlearn run` wrote: how the model was made, and its scores.

    Args:
        model_dir: folder with the model or adapter and its ``unlearning.json``.
        results: results files of the harness for this model, or folders that hold them.

    Raises:
        DataError: no record of the run, results of another model, or a README.md that a person wrote.
    """
    path = model_dir / "README.md"
    found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else MARK
    if not any(mark in found for mark in _AUTOMATIC):
        raise DataError(f"{path}: not replaced, since a person may have written it; move it away first")
    record = read_record(model_dir)
    model = own_results(model_dir, read_models(results))
    scores = card_scores(model)
    metadata = ModelCardData(
        model_name=visible(model_dir.resolve().name),
        base_model=record["model"]["repository"],
        library_name="peft" if record["lora"] else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", "lume", record["method"]],
        eval_results=[result for _, result in scores],
    )
    text = template("card.md.j2", keep_trailing_newline=True).render(
        code=_code,
        mark=MARK,
        name=model_dir.resolve().name,
        model=model,
        scores=scores,
        record=record,
        options=published_options(record),
        files=[(_data_file(Path(file).name), digest) for file, digest in record["data_sha256"].items()],
    )
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")
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
            content = json.loads(adapter.read_text(encoding="utf-8"))
            content["base_model_name_or_path"] = read_record(model_dir)["model"]["repository"]  # not a path
            data = json.dumps(content, indent=2).encode()
            api.upload_file(path_or_fileobj=data, path_in_repo=_ADAPTER_CONFIG, repo_id=repository)
        api.upload_folder(repo_id=repository, folder_path=model_dir, allow_patterns=names)
    except (OSError, ValueError) as error:  # HfHubHTTPError is an OSError
        advice = "Log in with `hf auth login`, or set HF_TOKEN."
        raise DataError(f"--push_to_hub {repository}: {error}\n{advice}") from error
    return str(address)


def read_record(model_dir: Path) -> dict[str, Any]:
    """Load ``unlearning.json``, with None or an empty dictionary for each part that this run did not record.

    Raises:
        DataError: the file is missing, or names no method.
    """
    path = model_dir / RECORD
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); `lume-unlearn run` writes it") from error
    if not isinstance(found, dict) or not isinstance(found.get("method"), str):
        raise DataError(f"{path}: names no method; write the card with the version of lume-unlearn that wrote the file")
    given = {name: value for name, value in found.items() if value is not None}
    base = dict.fromkeys(("repository", "revision", "sha256", "dtype")) | given.pop("model", {})
    return {**_RECORDED, **{name: {} for name in _GROUPS}, **given, "model": base}


def published_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run that can be published: numbers, and text that is one of a few choices."""
    options = record["method_options"] | record["arguments"] | record["lora"]
    shown = {name: value for name, value in options.items() if isinstance(value, (int, float)) or name in _CHOICES}
    return {name: record[name] for name in ("tuning", "seed") if record[name] is not None} | shown


def own_results(model_dir: Path, models: Sequence[Model]) -> Model:
    """Return the scored model whose path is this folder.

    Raises:
        DataError: there is none, or there are several (of other splits or settings).
    """
    own = [model for model in models if Path(model.path).resolve() == model_dir.resolve()]
    if len(own) != 1:
        found = "; ".join(f"{model.path} ({model.evaluations[0].settings})" for model in models)
        raise DataError(f"--results: give results of {model_dir.resolve()} in one setting; these are of {found}")
    return own[0]


def card_scores(model: Model) -> list[tuple[Score, EvalResult]]:
    """Return the scores that have a value, each with its entry in the ``model-index``.

    The MMLU score is left out unless all questions of MMLU were scored.
    """
    found = []
    for score in _SCORES:
        one, value = model.evaluation(score.task), model.score(score.task, score.metric)
        if one is None or value is None:
            continue
        data = lume_data(one, score.task)
        if score.metric == "mmlu":
            data = {"dataset_type": MMLU_HUB_ID, "dataset_name": "MMLU", "dataset_split": "test"}
            counts = [one.count(task) or 0 for task in one.content["n-samples"] if task.startswith("lume_mmlu_")]
            if sum(counts) != MMLU_QUESTIONS:
                continue
        result = EvalResult(
            task_type="text-generation",
            metric_type=score.metric,
            metric_name=f"{task_number(score.task)}, {score.name}" if score.task in TASKS else score.name,
            metric_value=round(value, 6),
            source_name="lm-evaluation-harness",
            source_url="https://github.com/EleutherAI/lm-evaluation-harness",
            **data,
        )
        found.append((score, result))
    return found


def lume_data(one: Evaluation, task: str) -> dict[str, Any]:
    """Describe the data of a task for the hub: as LUME only if the logged digests are those of its documents."""
    of_all = task in ("lume_score", "lume_swap")
    tasks = [name for name in (*TASKS, "lume_mia") if name in one.scores] if of_all else [task]
    digests = {one.digest(name) for name in tasks}
    kind, name, split = "other", "own data", visible(one.split)
    if digests and digests <= {published.MIA, *published.SPLITS}:
        kind, name = "lume", "part of LUME" if one.limit else "LUME"
        splits = {published.SPLITS[digest] for digest in digests if digest != published.MIA}
        if len(splits) == 1:
            split = splits.pop()
    # The hub tells entries apart by `dataset_config`.
    title = _TITLES[task]
    return {"dataset_type": kind, "dataset_name": f"{name}, {title}", "dataset_config": task, "dataset_split": split}


def _code(value: object) -> str:
    """Return any value as inline code on one line, in which no markup has an effect; None as a dash."""
    if value is None:
        return "-"
    text = visible(str(value)).replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return f"`{text}`"


def _data_file(name: str) -> str:
    """Return the name of a data file if it is a usual one; another name may be a person's."""
    return name if _DATA_FILE.fullmatch(name) else "another file"
