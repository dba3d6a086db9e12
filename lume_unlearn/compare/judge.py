"""Judge a model without generating text: how far its numbers are from the retrained model's, or from the ideal."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from lume_tasks.data import locate
from lume_tasks.metrics.aggregate import mia_score
from lume_tasks.metrics.unlearning import Groups, distance, mean_of_groups
from lume_unlearn.compare.options import CompareConfig
from lume_unlearn.evaluation import harness
from lume_unlearn.model import load

KINDS = ("exact_memorization", "extraction_strength", "probability")
GROUPS: Groups = {
    "forget": tuple(f"forget_{kind}" for kind in KINDS),
    "retain": tuple(f"retain_{kind}" for kind in KINDS),
    "attack": ("loss_auc",),
}
"""The numbers that decide which trial is best, in groups of equal weight."""


def judged(model: Any, tokenizer: Any, data: Path, batch_size: int) -> dict[str, float]:
    """Compute the numbers of `lume_memorization` (means over the tasks) and the AUCs of `lume_mia` for a loaded model.

    One forward pass over each row and document. The AUCs are absent without ``mia_data``.
    """
    tasks = [task for task in harness.tasks_for(data) if task in harness.ROW_TASKS]
    tasks = [task.replace("lume_", "lume_memorization_") for task in tasks]
    with_attack = (data / "mia_data").is_dir()
    metadata = harness.data_metadata(data) | {"tokenizer": tokenizer}
    lm = harness.wrap(model, tokenizer, batch_size)
    results = harness.score(lm, metadata, (*tasks, *["lume_mia"] * with_attack))
    numbers = {}
    for side in ("forget", "retain"):
        for kind in KINDS:
            values = [harness.metric(results, task, f"{side}_{kind}") for task in tasks]
            there = [value for value in values if value is not None]
            if there:
                numbers[f"{side}_{kind}"] = fmean(there)
    for name in harness.ATTACKS:
        value = harness.metric(results, "lume_mia", name)
        if value is not None:
            numbers[name] = value
    return numbers


def judged_model(config: CompareConfig, name: str, data: Path) -> dict[str, float]:
    """Load and judge a model."""
    model = load.load_for_scoring(name, config.trust_remote_code)
    tokenizer = load.load_tokenizer(name, config.trust_remote_code)
    return judged(model, tokenizer, data, config.evaluate_batch_size)


def shortfall(numbers: Mapping[str, float]) -> float:
    """Compute 1 minus the mean of forgetting (1 - forget numbers), retention (retain numbers) and `mia_score`.

    The objective where no retrained model is named. Worked example: forget .2, retain .9, AUC .7 (MIA score .6):
    1 - (.8 + .9 + .6) / 3 = .2333.
    """
    faults = {}
    for name, value in numbers.items():
        if name == "loss_auc":
            faults[name] = 1 - mia_score(value)
        else:
            faults[name] = value if name.startswith("forget") else 1 - value
    return mean_of_groups(faults, GROUPS)


def objective(numbers: Mapping[str, float], retrained: Mapping[str, float] | None) -> float:
    """Return what tuning minimises: `distance` to the retrained model, without one `shortfall`."""
    return distance(numbers, retrained, GROUPS) if retrained else shortfall(numbers)


def words(retrained: bool, attack: bool) -> str:
    """Say in one sentence what `objective` is, for the page."""
    numbers = "exact memorisation, extraction strength and token probability of the answers"
    if retrained:
        groups = "forget rows, retain rows" + (" and the AUC of the loss attack" if attack else "")
        return f"the mean absolute distance from the retrained model's {numbers}, with equal weight for {groups}"
    groups = "forgetting, retention" + (" and MIA score" if attack else "")
    return f"1 minus the mean of {groups}, where forgetting and retention are means over {numbers}"


def locate_mmlu(data: Path) -> str | None:
    """Return the local MMLU of a data directory or of LUME_MMLU_PATH, None if there is none."""
    source = locate.mmlu_source(None, data)
    return None if source == locate.MMLU_HUB_ID else source
