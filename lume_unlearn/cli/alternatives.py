"""`lume-unlearn alternatives`."""

from pathlib import Path
from typing import Any

from lume_unlearn.cli.parsing import SHARED, add_texts
from lume_unlearn.errors import ConfigError

TEXTS = {
    "model": "Reference model: a folder or a hub name.",
    "output": "File to write (.jsonl), one alternative a line.",
    **SHARED,
    "forget": "File or folder with forget rows (jsonl or parquet), instead of --data.",
    "samples": "Alternatives of each row (default: 5).",
    "temperature": "Temperature of the sampling (default: 1.0).",
    "max_new_tokens": "Most tokens of one alternative (default: 200).",
    "batch_size": "Alternatives sampled at the same time; another number gives other samples (default: 16).",
    "seed": "Seed of the sampling (default: 0).",
}


def add_options(parser: Any) -> None:
    """Add the options of `alternatives`."""
    add_texts(parser, TEXTS, required=("model", "output"))


def execute(options: dict[str, Any]) -> None:
    """Sample and write the file."""
    import torch

    from lume_unlearn.audit.alternatives import unused_part, write_alternatives
    from lume_unlearn.cli.training import take
    from lume_unlearn.data.sources import Source
    from lume_unlearn.model.load import bfloat16_here, load_model, load_tokenizer, require_model

    output = Path(options.pop("output")).expanduser()
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: name a file that ends in .jsonl")
    unused_part(output)
    name, trust = options.pop("model"), options.pop("trust_remote_code", False)
    require_model(name)
    rows = Source(**take(options, ("data", "split", "forget"))).loaded().forget
    tokenizer = load_tokenizer(name, trust)
    model = load_model(name, torch.bfloat16 if bfloat16_here() else torch.float32, trust)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    write_alternatives(model, tokenizer, rows, output, **options)
    print(f"Written to {output}.")
