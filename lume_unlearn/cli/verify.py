"""`lume-unlearn verify`."""

import json
from pathlib import Path
from typing import Any

from lume_unlearn.cli.parsing import SHARED, add_texts
from lume_unlearn.errors import ConfigError

TEXTS = {
    "verdict": "The verdict.json that `audit --before` or `forget` wrote.",
    "model": "Model that the verdict should belong to: a folder or a hub name.",
    "peft": "Its adapter, if it was audited with one.",
    **SHARED,
    "data": "Data directory; default: data/ beside the verdict if `forget` wrote it, else LUME_DATA_DIR, else the "
    "published LUME.",
}
EXIT_STATUS = "Exit status: 0 they match; 1 they do not; 2 options or files that cannot work."


def add_options(parser: Any) -> None:
    """Add the options of `verify`."""
    add_texts(parser, TEXTS, required=("verdict", "model"))


def execute(options: dict[str, Any]) -> int:
    """Compute the hashes again, check the ledger beside the verdict, and print mismatches; return 1 for any, else 0."""
    from lume_tasks.data.source import load_data
    from lume_unlearn.audit.writing import require_verdict, verify
    from lume_unlearn.cli.audit import MODELS, load_audited, require_models
    from lume_unlearn.cli.forget import DATA
    from lume_unlearn.data.sources import named_directory
    from lume_unlearn.forget.forget import INPUTS
    from lume_unlearn.forget.ledger import LEDGER, ledger_faults, read_ledger

    path = Path(options.pop("verdict")).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--verdict {path}: cannot be read ({error})") from error
    require_verdict(content)
    require_models(**{name: options[name] for name in MODELS if name in options})
    beside, entries = path.parent / DATA, read_ledger(path.parent / LEDGER)
    by_forget = (path.parent / INPUTS).exists()
    if "data" not in options and beside.is_dir():  # written by `forget`
        options["data"] = str(beside)
    elif "data" not in options and by_forget:
        raise ConfigError(f"--data: give the folder with the rows of the request, since {beside} is no longer there")
    data = load_data(named_directory(options.pop("data", None)), options.pop("split", "all"))
    model, _, _ = load_audited(**options, device="cpu")
    faults = verify(content, model, data)
    faults += ledger_faults(entries, content)
    if by_forget and not entries:
        faults.append(f"The ledger {LEDGER} is missing.")
    print("\n".join(faults) or f"The weights and rows match the verdict ({content['status']}).")
    return 1 if faults else 0
