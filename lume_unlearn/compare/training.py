"""Train with one setting, in memory: what tuning and the final runs share."""

import json
import tempfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate.utils import release_memory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import set_seed

from lume_tasks.data.source import Data
from lume_unlearn.compare.contestants import READ, Contestant
from lume_unlearn.compare.judge import Result
from lume_unlearn.compare.tuning import Setting
from lume_unlearn.errors import log
from lume_unlearn.files import replacing
from lume_unlearn.methods.registry import method_of
from lume_unlearn.model.load import load_model, trainable
from lume_unlearn.model.weights import convert_weights, copied_weights, set_weights
from lume_unlearn.training.arguments import UnlearningArguments, filled_in, learning_rate_of, loaded_dtype
from lume_unlearn.training.relearning import plain_copy
from lume_unlearn.training.trainer import UnlearningTrainer

Load: TypeAlias = Callable[[torch.dtype], Any]
"""Returns a model that the caller may change, with weights of this dtype."""


def loader(model: Any, trust_remote_code: bool, option: str = "--model") -> Load:
    """Return a function that loads a model from its folder or the hub, or copies an object; adapters are merged.

    ``option`` names the model in messages.
    """

    def load(dtype: torch.dtype) -> Any:
        if isinstance(model, str | PathLike):
            found = load_model(str(model), dtype, trust_remote_code, option)
        else:
            found = plain_copy(model)
            convert_weights(found.parameters(), dtype)
        return found.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    return load


def arguments(contestant: Contestant, setting: Setting, folder: str = "unused") -> UnlearningArguments:
    """Return the arguments of a run of a contestant, with the values of a setting instead of its defaults."""
    changed = {name: value for name, value in setting.items() if name not in contestant.method.params()}
    return UnlearningArguments(output_dir=folder, **{**contestant.options, **changed})


def default_arguments(contestant: Contestant, model: Any) -> UnlearningArguments:
    """Return the arguments of a contestant with all defaults filled in; ``model``: the target, without adapter."""
    rate = contestant.options.get("learning_rate")
    rate = learning_rate_of(contestant.method, model, contestant.tuning) if rate is None else rate
    return filled_in(arguments(contestant, {"learning_rate": rate}), contestant.method, model)


def unlearned(
    load: Load, contestant: Contestant, setting: Setting, data: Data, callback: Any, given: Mapping[str, Any]
) -> Any:
    """Unlearn the forget rows of ``data`` from the target without writing anything; return the model in float32.

    Args:
        load: loads the target.
        contestant: what to run.
        setting: values instead of its defaults: those tuned, and others, such as the seed.
        data: rows.
        callback: a `TrainerCallback`, or None. A method that negates a task vector trains without it, since the model
            learns the forget rows until the end of training.
        given: further arguments of the trainer: the tokenizer, and alternatives to these rows.

    Raises:
        Diverged: training with this setting diverged or collapsed.
        ConfigError: an option that cannot work.
        DataError: rows that do not fit the model.
    """
    release_memory()  # frees the previous run, whose trainer and model refer to each other
    params = {name: setting[name] for name in contestant.method.params() if name in setting}
    read = {name: reader(contestant.recipe[name]) for name, reader in READ.items() if name in contestant.recipe}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(contestant, setting, folder)
        set_seed(args.seed)  # for the adapter's initial weights
        model = _ready(load, contestant, args)
        method = method_of(contestant.method, **params)
        trainer = UnlearningTrainer(model, method, args, data.forget, data.retain, **read, **given)
        if callback and not method.negated:
            trainer.add_callback(callback)
        trainer.train()
    del trainer
    release_memory()
    convert_weights(model.parameters(), torch.float32)
    return model.eval()


def _ready(load: Load, contestant: Contestant, args: UnlearningArguments) -> Any:
    """Load the target for training."""
    return trainable(load(loaded_dtype(args, contestant.tuning)), contestant.tuning, contestant.lora)


def keep(path: Path, model: Any, result: Result) -> None:
    """Write trained weights, with their result as metadata, to a file; if that fails, only warn."""
    try:
        with replacing(path) as partial:
            save_file(copied_weights(model), partial, {"result": json.dumps(result)})
    except (OSError, SafetensorError) as error:
        log.warning("%s: cannot be written (%s); if its probes are stopped, the run is trained again", path, error)


def kept_run(path: Path, load: Load, contestant: Contestant, setting: Setting) -> tuple[Any, Result]:
    """Return the model, as `unlearned` returned it, and the result that `keep` wrote."""
    release_memory()
    model = _ready(load, contestant, arguments(contestant, setting)).eval()
    convert_weights(model.parameters(), torch.float32)
    with safe_open(path, "pt") as file:
        set_weights(model, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return model, json.loads(file.metadata()["result"])
