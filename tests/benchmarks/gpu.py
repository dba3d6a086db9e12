"""Parts of `gpu.sh`: one whole run with its scores, and the table of all results."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import DEVICE, parser, prepared, timed, write

from lume_unlearn.model.load import load_tokenizer, merged_model
from lume_unlearn.scoring.score import score
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.run import run

COLUMNS = {"tokens_per_second": ",.0f", "share_of_matmul_peak": ".1%", "ratio": ".2f", "total_gb": ".2f"}
TASKS = ("lume_task1", "lume_task2", "lume_task3")


def whole(args: argparse.Namespace) -> None:
    """Time `lume-unlearn run` from files to files, and the scores of its result."""
    with prepared(args) as (model, data, peak, _):
        options: dict[str, Any] = {"num_train_epochs": 2, "bf16": args.dtype == "bfloat16", "seed": args.seed}
        arguments = UnlearningArguments(output_dir=f"{args.work}/output", **options)
        taken = timed(lambda: run(model, arguments, "npo", data=str(data)))
        rows = [{"case": "whole run", "way": "npo LoRA, 2 epochs", "total_s": taken.seconds}]
        merged = merged_model(model, f"{args.work}/output").to(DEVICE, getattr(torch, args.dtype))
        options = {"tasks": TASKS, "batch_size": args.batch_size, "limit": args.limit}
        scored = timed(lambda: score(merged, load_tokenizer(model), data, **options))
        prompts = sum(count["effective"] for count in scored.value.results["n-samples"].values())
        rate = prompts / scored.seconds
        rows.append({"case": "scoring", "way": f"{prompts} prompts", "total_s": scored.seconds, "prompts/s": rate})
    write(args, peak, rows)


def table(folder: Path) -> None:
    """Print all results as a table in Markdown."""
    print("| step | case | way | tokens/s | share of peak | ratio | memory, GB | other |\n" + "|---" * 8 + "|")
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        for row in found.get("results", [{"case": "does not fit into memory", "way": ""}]):
            cells = [path.stem, row["case"], row["way"]]
            cells += [f"{row[name]:{style}}" if name in row else "" for name, style in COLUMNS.items()]
            other = [f"{row[name]:.3g} {name}" for name in ("total_s", "prompts/s") if name in row]
            print("|", " | ".join([*cells, "; ".join(other)]), "|")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=["whole", "table"])
    options.add_argument("--batch_size", type=int, default=128, help="prompts of one scoring batch")
    options.add_argument("--limit", type=int, default=128, help="prompts of each task and side to score")
    options.add_argument("--folder", type=Path, help="of the results, for the table")
    args = options.parse_args()
    if args.what == "table":
        table(args.folder)
    else:
        whole(args)


if __name__ == "__main__":
    main()
