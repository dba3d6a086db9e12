"""`lume-unlearn audit`."""

from functools import partial
from pathlib import Path
from typing import Any

from lume_unlearn.checks import names
from lume_unlearn.cli.parsing import SHARED, add_texts
from lume_unlearn.cli.training import take
from lume_unlearn.errors import ConfigError, require_unused

PROBES = (
    "Probes, separated by commas: plain, other_words, other_forms, languages, conversation, persons, invented, "
    "own_words, multiple_choice, quantised, repair, relearn_forget, unrelated, samples (default: all for which there "
    "are enough rows)."
)
TEXTS = {
    "model": "Model to audit: a folder (also of an adapter) or a hub name.",
    "output": "Folder for audit.json, and for the verdict if --before is given.",
    "peft": "Adapter on the model, if the unlearned model is one.",
    "before": "Model before unlearning. With it the audit gives a verdict, in verdict.json and verdict.html.",
    "control": "Model that never saw the forget rows, such as the one before fine-tuning: what this model also "
    "gives away does not count as a leak.",
    "keep": "Share of the retain rows known before that must be known now (default: 0.9).",
    "controls": "Invented persons that the swap test compares each person with (default: 99).",
    "require": "Conditions for exit status 0 besides the verdict, separated by commas, such as "
    '"forget_knowledge<=0.05,retain_knowledge>=0.9"; verdict.json lists the numbers.',
    "tasks": "Further tasks of the harness, separated by commas, scored before and after.",
    "forgotten": "Data directories of earlier requests, separated by commas: their forget rows must be gone as well.",
    "request": "Name of the request, such as a number, a date and who asked; printed unchanged on the page.",
    "show_pii": "Do not redact personal data on the page.",
    **SHARED,
    "chat": "Ask questions of your own tasks through the chat template (default: true).",
    "probes": PROBES,
    "limit": "Rows of each side to use, with their member documents, chosen by the seed; 0 for all (default: 0).",
    "relearn_rows": "Rows (or texts) that relearn_forget, repair and unrelated train on (default: 32).",
    "relearn_steps": "Steps of this training, of 8 rows each (default: 20).",
    "relearn_rate": "Learning rate of this training (default: 1e-4).",
    "loss_on": "Labelled tokens of this training (default: text).",
    "unrelated": "File with texts unrelated to the rows, for the probe unrelated: jsonl or parquet with a field "
    '"document", or plain text in which blank lines separate the texts.',
    "samples": "Answers to sample for each row; the probe samples gives the expected best of 1, 2, 4, ... (default: "
    "8).",
    "temperature": "Temperature of the sampling (default: 1.0).",
    "top_p": "Nucleus sampling: share of the probability to sample from; 1 for all of it (default: 1).",
    "batch_size": "Prompts of one scoring batch (default: 64).",
    "device": "Device to score and train on; by default a GPU if there is one.",
    "seed": "Seed of the chosen rows, the sampling and the training (default: 0).",
}
EXIT_STATUS = (
    "Exit status with --before: 0 gone; 4 gone, but the rest is damaged; 1 not gone; 3 cannot be told, or a condition "
    "of --require does not hold. 2: options or files that cannot work."
)
FOR_VERDICT = ("control", "controls", "keep", "require", "tasks", "forgotten", "request", "show_pii")
"""Options that have an effect only with ``--before``."""
LOADING = ("model", "peft", "trust_remote_code", "device")
"""Options for loading the audited model, and its device."""
MODELS = ("model", "peft", "device", "before", "control")
"""Options that are checked first; see `require_models`."""


def add_options(parser: Any) -> None:
    """Add the options of `audit`."""
    add_texts(parser, TEXTS, required=("model", "output"))


def execute(options: dict[str, Any]) -> int:
    """Load models and data, run the probes, and print a table or, with ``--before``, the verdict."""
    from lume_tasks.data.source import load_data
    from lume_unlearn.audit.probes import audit, audit_table
    from lume_unlearn.audit.rows import limited
    from lume_unlearn.audit.stages import UNFINISHED
    from lume_unlearn.audit.verdict import wanted_probes
    from lume_unlearn.data.documents import read_texts
    from lume_unlearn.data.sources import earlier_rows, named_directory

    given = [f"--{name}" for name in FOR_VERDICT if options.get(name)]
    if given and "before" not in options:
        raise ConfigError(f"{', '.join(given)}: only with --before, for a verdict")
    if options.get("top_p", 1) > 1:
        raise ConfigError(f"--top_p {options['top_p']}: must be above 0 and at most 1")
    output = Path(options.pop("output")).expanduser()
    if not (output / UNFINISHED).exists():
        require_unused(output)
    require_models(**{name: options[name] for name in MODELS if name in options})
    if "unrelated" in options:
        options["unrelated"] = read_texts("unrelated", options["unrelated"])
    if "probes" in options:
        options["probes"] = names(options["probes"])
    whole = load_data(named_directory(options.pop("data", None)), options.pop("split", "all"))
    forgotten = [earlier_rows(name) for name in names(options.pop("forgotten", None))]
    require = names(options.pop("require", None))
    data = limited(whole, options.get("limit", 0), options.get("seed", 0))
    # In this order: probes, then models, then scores, so that a mistake is found early.
    tasks = names(options.get("tasks"))
    options["probes"] = wanted_probes(data, options.pop("probes", None), require, tasks, options)
    loading, status = take(options, LOADING), 0
    model, tokenizer, device = audited = load_audited(**loading)
    name = loading.get("peft") or loading["model"]
    if "before" in options:
        status = _verdict(audited, whole, output, name, loading, options | {"require": require, "forgotten": forgotten})
    else:
        options.pop("limit", None)
        print(audit_table(audit(model.to(device), tokenizer, data, output=output, name=name, **options)))
    print(f"Written to {output}.")
    return status


def _verdict(
    audited: Any, whole: Any, output: Path, name: str, loading: dict[str, Any], options: dict[str, Any]
) -> int:
    from lume_unlearn.audit.probes import write_audit
    from lume_unlearn.audit.stages import UNFINISHED
    from lume_unlearn.audit.verdict import verdict
    from lume_unlearn.audit.writing import write_verdict

    model, tokenizer, device = audited
    show_pii, request = options.pop("show_pii", False), options.pop("request", "")
    others, options["tasks"] = take(options, ("before", "control")), names(options.get("tasks"))

    def load(role: str, folder: str) -> tuple[Any, Any]:
        model.to("cpu")  # one model at a time on the device
        other, own, _ = load_audited(**(loading | {"model": folder, "peft": None, "option": f"--{role}"}))
        return other.to(device), own

    loaders: dict[str, Any] = {role: partial(load, role, folder) for role, folder in others.items()}
    options |= {"after_each": lambda scores: write_audit(scores, output, name, whole.split)}
    options |= {"resume": output / UNFINISHED}
    found = verdict(lambda: (model.to(device), tokenizer), tokenizer, **vars(whole), **loaders, **options)
    write_verdict(found, output, show_pii, request)
    (output / UNFINISHED).unlink()
    print("\n".join(found.lines()))
    return found.exit_status


def require_models(model: str, peft: str | None = None, device: str | None = None, **others: Any) -> None:
    """Check the options that name models, before data is read or a model is loaded.

    Args:
        model: value of ``--model``.
        peft: value of ``--peft``.
        device: value of ``--device``.
        **others: values of other options that name models, by option.

    Raises:
        ConfigError: an option is wrong; the message names it.
    """
    import torch

    from lume_unlearn.model import load
    from lume_unlearn.model.places import with_adapter

    with_adapter(load.require_model(model), peft, "--peft")
    for option, name in others.items():
        load.require_model(name, f"--{option}")
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise ConfigError(f"--device {device}: not a device of torch; use one such as cpu, cuda or cuda:1") from error


def load_audited(
    model: str,
    peft: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    option: str = "--model",
) -> tuple[Any, Any, str]:
    """Load model and tokenizer; return them and the device to move the model to. Messages name ``option``."""
    import torch

    from lume_unlearn.model import load
    from lume_unlearn.model.places import find_model, with_adapter

    if peft:
        loaded = load.merged_model(model, peft, trust_remote_code, option="--peft")
    else:
        loaded = load.load_model(model, torch.float32, trust_remote_code, option)
    tokenizer = load.load_tokenizer(with_adapter(find_model(model, option), peft, "--peft"), trust_remote_code, option)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return loaded.eval(), tokenizer, device
