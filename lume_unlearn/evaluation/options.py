"""The options of the commands `audit` and `alternatives`."""

import logging
from dataclasses import dataclass

from lume_unlearn.config import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Split,
    check_types,
    names,
    raise_faults,
)
from lume_unlearn.faults import source_faults

_log = logging.getLogger("lume_unlearn")


@dataclass(frozen=True)
class AlternativesConfig:
    """Options of `lume-unlearn alternatives`.

    Attributes:
        model: Reference model: a folder or a hub name.
        output: File to write (.jsonl), one alternative a line.
        data: Data directory with the forget rows; default LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        forget: File or folder with forget rows (jsonl or parquet), instead of --data.
        samples: Alternatives of each row.
        temperature: Temperature of the sampling, as transformers' generate takes it.
        max_new_tokens: Most tokens of one alternative.
        batch_size: Alternatives sampled at the same time; another number gives other samples.
        seed: Seed of the sampling.
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    data: str | None = None
    split: Split = "all"
    forget: str | None = None
    samples: PositiveInt = 5
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 200
    batch_size: PositiveInt = 16
    seed: NonNegativeInt = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        check_types(self)
        faults = source_faults(self.forget, self.data, self.split)
        if not self.output.endswith(".jsonl"):
            faults.append(f"--output {self.output}: name a file that ends in .jsonl")
        raise_faults(faults)


@dataclass(frozen=True)
class AuditConfig:
    """Options of `lume-unlearn audit`.

    Attributes:
        model: Model to audit: a folder or a hub name.
        output: Folder for the rows of each audit and audit.json.
        peft: Adapter on the model, if the unlearned model is one.
        before: Model before unlearning. With it the audit ends in a verdict: gone, not gone, or cannot be told (exit
            status 0, 1, 3), in verdict.json and verdict.html.
        require: Conditions for exit status 0 besides the verdict, as "forget_knowledge<=0.05,retain_knowledge>=0.9";
            verdict.json lists the numbers.
        tasks: Further tasks of the harness, separated by commas, scored before and after.
        forgotten: Data directories of earlier requests, separated by commas: their forget rows must be gone as well.
        show_pii: Do not redact personal data on the page.
        data: Data directory; default LUME_DATA_DIR, else the published LUME.
        split: Rows to use: all, train, validation or test.
        chat: Ask questions of your own tasks through the chat template; see `lume-unlearn run --help`.
        audits: Audits to run, separated by commas; by default all.
        limit: Rows of each side to use, chosen by the seed; 0 for all.
        relearn_rows: Rows (or texts) that relearn_forget, repair and unrelated train on.
        relearn_epochs: Epochs over these rows.
        relearn_rate: Learning rate of this training.
        unrelated: File with texts that have nothing to do with the rows, which the audit unrelated trains on: jsonl or
            parquet with a field "document", or plain text in which blank lines separate the texts.
        samples: Answers to sample for each row. The audit samples gives the expected best of 1, 2, 4, ... of them.
        temperature: Temperature of the sampling.
        top_p: Share of the probability that is sampled from (nucleus sampling); 1 for all of it.
        batch_size: Prompts of one scoring batch.
        device: Device to score and train on; by default a GPU if there is one.
        seed: Seed of the chosen rows, the sampling and the training.
        trust_remote_code: Run code that a hub model brings along.
    """

    model: str
    output: str
    peft: str | None = None
    before: str | None = None
    require: str | None = None
    tasks: str | None = None
    forgotten: str | None = None
    show_pii: bool = False
    data: str | None = None
    split: Split = "all"
    chat: bool = True
    audits: str | None = None
    limit: NonNegativeInt = 0
    relearn_rows: PositiveInt = 16
    relearn_epochs: PositiveInt = 4
    relearn_rate: PositiveFloat = 1e-4
    unrelated: str | None = None
    samples: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: PositiveFloat = 1.0
    batch_size: PositiveInt = 64
    device: str | None = None
    seed: NonNegativeInt = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        check_types(self)
        given = [name for name in ("require", "tasks", "forgotten") if getattr(self, name) is not None]
        if given and self.before is None:
            raise_faults([f"--{', --'.join(given)}: only with --before, which asks for a verdict"])
        if self.top_p > 1:
            raise_faults([f"--top_p {self.top_p}: must be a share of the probability, above 0 and at most 1"])
        chosen = names(self.audits)
        if "relearn_retain" in chosen:
            _log.warning("--audits relearn_retain: this audit is now repair; use that name")
            renamed = ["repair" if name == "relearn_retain" else name for name in chosen]
            object.__setattr__(self, "audits", ",".join(renamed))
