"""The command with which a user can score the result of a run."""

import json
import shlex
from pathlib import Path

from lume_tasks.data.rows import ROW_TASKS
from lume_tasks.data.source import load_data
from lume_unlearn.scoring.score import tasks_for


def scoring_command(
    model: str,
    output: str,
    *,
    adapter: bool,
    directory: Path | None,
    data: str | None = None,
    split: str = "all",
    chat: bool = True,
    trust_remote_code: bool = False,
) -> str:
    """Return the `lm_eval` command that scores the result of a run on its rows, with the tasks that it has rows for.

    Args:
        model: the model that was unlearned.
        output: folder of the result.
        adapter: whether the result is an adapter on the model.
        directory: data directory; None if the rows came from files or from memory, which lm_eval does not read.
        data: the directory as the user named it (``--data``); None if it was found without this option.
        split: split of the directory.
        chat: whether questions went through the chat template.
        trust_remote_code: run code that a hub model brings along.
    """
    arguments = f"pretrained={model},peft={output}" if adapter else f"pretrained={output}"
    arguments += ",trust_remote_code=True" if trust_remote_code else ""
    tasks, named = "lume", data
    if directory is None:
        named = data or "FOLDER OF forget.jsonl AND retain.jsonl"
    else:
        found = tasks_for(load_data(directory, split))
        # With all of these there is a final score; if there is no local MMLU, the harness loads it from the hub.
        lume = set(found) - {"lume_mmlu", "lume_score"} == {*ROW_TASKS[:3], "lume_mia"}
        tasks = "lume" if lume else ",".join(found)
    given = {"lume_data_dir": named or None, "lume_split": split, "lume_chat": chat}
    default = {"lume_data_dir": None, "lume_split": "all", "lume_chat": True}
    metadata = {name: value for name, value in given.items() if value != default[name]}
    words = ["lm_eval", "--model", "lume-hf", "--model_args", arguments, "--tasks", tasks, "--batch_size", "64"]
    words += ["--metadata", json.dumps(metadata, ensure_ascii=False)] if metadata else []
    return shlex.join([*words, "--output_path", "results", "--log_samples"])
