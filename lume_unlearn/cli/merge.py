"""`lume-unlearn merge`."""

from typing import Any, Literal

from lume_unlearn.cli.parsing import UNSET


def add_options(parser: Any) -> None:
    """Add the options of `merge`."""
    parser.add_argument(
        "--adapter", required=True, help="Folder with a LoRA adapter, of `run`, `finetune` or `forget`."
    )
    parser.add_argument("--output", required=True, help="Folder for the merged model.")
    parser.add_argument("--model", default=UNSET, help="Model to merge into, if not the one that the adapter names.")
    dtype = Literal["float32", "bfloat16"]
    parser.add_argument("--dtype", type=dtype, default="float32", help="Data type of the saved weights.")


def execute(options: dict[str, Any]) -> None:
    """Merge and save."""
    from lume_unlearn.training.merge import merge

    merge(**options)
    print(f"Written to {options['output']}.")
