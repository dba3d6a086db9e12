"""`lume-unlearn card`."""

from pathlib import Path
from typing import Any

from lume_unlearn.cli.parsing import UNSET


def add_options(parser: Any) -> None:
    """Add the options of `card`."""
    parser.add_argument("--model_dir", required=True, help="Folder that `run` wrote.")
    parser.add_argument(
        "--results", nargs="+", required=True, help="Scores of this model: results_*.json of lm_eval, or their folder."
    )
    parser.add_argument("--push_to_hub", default=UNSET, help="Upload model, tokenizer and card to this hub repository.")


def execute(options: dict[str, Any]) -> None:
    """Write the card, and upload the folder if asked to."""
    from lume_unlearn.report.card import push_to_hub, write_card

    folder, repository = Path(options["model_dir"]), options.get("push_to_hub")
    print(f"Written to {write_card(folder, options['results'])}.")
    if repository:
        print(f"Uploaded to {push_to_hub(folder, repository)}.")
