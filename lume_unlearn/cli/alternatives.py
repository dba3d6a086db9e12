"""`lume-unlearn alternatives`."""

from pathlib import Path
from typing import Any, Literal

from lume_unlearn.checks import NonNegativeInt, PositiveFloat, PositiveInt
from lume_unlearn.cli.parsing import UNSET
from lume_unlearn.errors import ConfigError

TITLE = "Sample other answers to the forget rows from a model, for altpo and dpo."


def add_options(parser: Any) -> None:
    """Add the options of `alternatives`."""
    parser.add_argument("--model", type=str, required=True, help="Reference model: a folder or a hub name.")
    parser.add_argument("--output", type=str, required=True, help="File to write (.jsonl), one alternative a line.")
    text = "Data directory with the forget rows; default LUME_DATA_DIR, else the published LUME."
    parser.add_argument("--data", type=str, default=UNSET, help=text)
    splits = Literal["all", "train", "validation", "test"]
    parser.add_argument("--split", type=splits, default=UNSET, help="Rows to use (default: all).")
    text = "File or folder with forget rows (jsonl or parquet), instead of --data."
    parser.add_argument("--forget", type=str, default=UNSET, help=text)
    parser.add_argument("--samples", type=PositiveInt, default=UNSET, help="Alternatives of each row (default: 5).")
    text = "Temperature of the sampling (default: 1.0)."
    parser.add_argument("--temperature", type=PositiveFloat, default=UNSET, help=text)
    text = "Most tokens of one alternative (default: 200)."
    parser.add_argument("--max_new_tokens", type=PositiveInt, default=UNSET, help=text)
    text = "Alternatives sampled at the same time; another number gives other samples (default: 16)."
    parser.add_argument("--batch_size", type=PositiveInt, default=UNSET, help=text)
    parser.add_argument("--seed", type=NonNegativeInt, default=UNSET, help="Seed of the sampling (default: 0).")
    parser.add_argument("--trust_remote_code", type=bool, default=UNSET, help="Run code that a hub model brings along.")


def execute(options: dict[str, Any]) -> None:
    """Sample and write the file."""
    import torch

    from lume_unlearn.audit.alternatives import unused_part, write_alternatives
    from lume_unlearn.cli.training import take
    from lume_unlearn.data.sources import Source
    from lume_unlearn.model.load import bfloat16_here, load_model, load_tokenizer

    output = Path(options.pop("output"))
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: name a file that ends in .jsonl")
    unused_part(output)
    name, trust = options.pop("model"), options.pop("trust_remote_code", False)
    rows = Source(**take(options, ("data", "split", "forget"))).rows()["forget"]
    tokenizer = load_tokenizer(name, trust)
    model = load_model(name, torch.bfloat16 if bfloat16_here() else torch.float32, trust)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    write_alternatives(model, tokenizer, rows, output, **options)
    print(f"Written to {output}.")
