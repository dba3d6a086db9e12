"""The options of the command `compare`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lume_unlearn.config import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Split,
    check_types,
    names,
    raise_faults,
)
from lume_unlearn.faults import TUNINGS
from lume_unlearn.methods.registry import METHODS


def is_recipe(name: str) -> bool:
    """Return whether a name of ``--methods`` is a recipe's file."""
    return name.endswith(".yaml") and Path(name).is_file()


@dataclass(frozen=True)
class CompareConfig:
    """Options of `lume-unlearn compare`.

    Attributes:
        model: Target model, which memorised the rows: a folder or a hub name.
        output: Folder for the table, the page, the recipes and the storage; the same command continues there.
        methods: Methods to compare, separated by commas (`lume-unlearn methods` lists them), or recipes: files with
            options of `run`, which end in .yaml.
        tunings: What to train, separated by commas: lora, full, last:K, modules:REGEX (without a comma).
        retrained: Model trained without the forget rows (`lume-unlearn finetune --rows retain`); methods are then
            judged by their distance to it.
        data: Data directory; default LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        alternatives: File with other answers to the forget rows, for dpo and altpo.
        trials: Settings to try for each method and tuning: the first three are the method's defaults with its learning
            rate times 1, 0.2 and 5; a sampler (TPE) chooses the others.
        seeds: Runs of the best setting of each, with seeds from 0.
        tuning_share: Share of the documents on which settings are tuned; the final scores are of the others.
        epochs: Epochs of every run; default: each method's.
        batch_size: Forget rows of one optimiser step of the final runs; default: each method's. Tuning has fewer rows
            and proportionally smaller batches, hence as many steps (not with sugd, whose batches are single rows).
        loss_on: Labelled tokens: the answer (`output` and EOS), or the whole text, which the attack is about.
        audits: Test the results of seed 0 by quantisation, repair and relearning, too.
        requests: Also unlearn the final forget rows in so many parts, one after the other, with the best settings, and
            measure what comes back of the earlier parts; 0 for not.
        audit_rows: Rows that repair and relearning train on.
        audit_rate: Learning rate of repair and relearning.
        max_tokens: Most tokens in one micro-batch; see `lume-unlearn run --help`.
        precision: Arithmetic of training: float32, bfloat16, or auto. Results are scored in float32.
        evaluate_batch_size: Prompts of one scoring batch.
        storage: Where trials and results are kept: a URL of a database (postgresql://...), or journal:FILE for a file
            on a shared disk. Processes that name the same one share the work. Default: a SQLite file in the output.
        seed: Seed of the division of the documents and of the rows of the audits.
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    methods: str = "ga,gd,kl,npo"
    tunings: str = "lora"
    retrained: str | None = None
    data: str | None = None
    split: Split = "all"
    alternatives: str | None = None
    trials: PositiveInt = 8
    seeds: PositiveInt = 3
    tuning_share: Share = 0.25
    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    loss_on: Literal["answer", "text"] = "answer"
    audits: bool = True
    requests: NonNegativeInt = 0
    audit_rows: PositiveInt = 32
    audit_rate: PositiveFloat = 1e-4
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluate_batch_size: PositiveInt = 64
    storage: str | None = None
    seed: NonNegativeInt = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        check_types(self)
        unknown = [name for name in names(self.methods) if name not in METHODS and not is_recipe(name)]
        faults = []
        if unknown or not names(self.methods):
            faults.append(f"--methods {', '.join(unknown)}: choose from {', '.join(METHODS)}, or name recipes (.yaml)")
        if not names(self.tunings) or not all(re.fullmatch(TUNINGS, name) for name in names(self.tunings)):
            faults.append(f"--tunings {self.tunings}: choose from lora, full, last:K (K layers), modules:REGEX")
        if not self.tuning_share:
            faults.append("--tuning_share 0: tuning needs documents; give a share above 0, such as 0.25")
        needing = [name for name in names(self.methods) if name in METHODS and METHODS[name].alternative == "file"]
        if needing and self.alternatives is None:
            faults.append(f"--methods {', '.join(needing)}: need --alternatives FILE (`lume-unlearn alternatives`)")
        raise_faults(faults)

    @property
    def contestants(self) -> list[tuple[str, str]]:
        """Every method with every tuning, as (method, tuning)."""
        return [(method, tuning) for method in names(self.methods) for tuning in names(self.tunings)]
