"""Time the answers to requests of the tasks.

Generation: the harness's `hf` with one prompt at a time, and with batches. Log-likelihoods: the harness's `hf`,
`lume-hf` with the logits of all positions, `lume-hf` that reads shared beginnings again for each row, and `lume-hf`.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import DEVICE, alternate, figures, parser, prepared, write
from lm_eval.models.huggingface import HFLM

from lume_tasks.data.source import load_data
from lume_tasks.models import hf
from lume_tasks.models.hf import LumeHF
from lume_unlearn.scoring.score import evaluate, task_manager

KINDS = {
    "generation": ("lume_task1", "lume_task2", "lume_task3"),
    "mmlu": ("lume_mmlu",),
    "mia": ("lume_mia",),
    "swap": ("lume_swap",),
}

Way = Callable[[list], list]


class Captured(Exception):
    """Ends an evaluation when its requests are known."""


def captured(lm: Any, method: str, args: argparse.Namespace, data: Path) -> list:
    """Return what the harness passes to a method of the model: the requests of ``args.kind``."""
    tasks, loaded = KINDS[args.kind], replace(load_data(data), mmlu=args.mmlu)
    subjects = {"lume_mmlu_subjects": args.mmlu_subjects} if args.mmlu_subjects else {}
    manager = task_manager(lm.tokenizer, loaded, tasks, metadata=subjects)
    with suppress(Captured), patch.object(lm, method, side_effect=Captured) as call:
        evaluate(lm, tasks, manager, limit=-(-args.prompts // len(tasks)))
    return call.call_args.args[0]


def answer(lm: HFLM, batch_size: int, requests: list) -> list[str]:
    lm.batch_size_per_gpu = batch_size
    return lm.generate_until(requests, disable_tqdm=True)


def generation(model: str, data: Path, args: argparse.Namespace) -> tuple[dict[str, Way], list, Callable[..., int]]:
    lm = HFLM(pretrained=model, dtype=args.dtype, device=DEVICE.type, batch_size=1)
    requests = captured(lm, "generate_until", args, data)

    def tokens(answers: list[str]) -> int:
        return sum(len(lm.tok_encode(text)) for text in [request.args[0] for request in requests] + answers)

    return {f"batches of {size}": partial(answer, lm, size) for size in (1, args.batch_size)}, requests, tokens


def loglikelihoods(model: str, data: Path, args: argparse.Namespace) -> tuple[dict[str, Way], list, Callable[..., int]]:
    lm = LumeHF(pretrained=model, dtype=args.dtype, device=DEVICE.type, batch_size=args.batch_size)
    stock = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=args.batch_size)
    requests = captured(lm, "_loglikelihood_tokens", args, data)
    rows = [row for batch, _ in lm._batches(requests) for row, _ in batch]
    print(f"{len(rows)} prompts with {len(requests)} continuations")

    def all_logits(requests: list) -> list:
        with patch.object(lm.model, "get_output_embeddings", return_value=None):
            return lm._loglikelihood_tokens(requests, disable_tqdm=True)

    def nothing_shared(requests: list) -> list:
        with patch.object(hf, "read_once", lambda model, inputs, wanted: (inputs, wanted, {})):
            return lm._loglikelihood_tokens(requests, disable_tqdm=True)

    ways = {
        "hf": partial(stock._loglikelihood_tokens, disable_tqdm=True),
        "all logits": all_logits,
        "nothing shared": nothing_shared,
        "lume-hf": partial(lm._loglikelihood_tokens, disable_tqdm=True),
    }
    return ways, requests, lambda _: sum(map(len, rows))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kind", choices=KINDS, default="generation", help="mmlu needs --mmlu, mia and swap --data")
    options.add_argument("--mmlu", metavar="FOLDER", help="copy of MMLU")
    options.add_argument("--mmlu_subjects", help="names with commas; by default all")
    options.add_argument("--prompts", type=int, default=12, help="the first ones; for mmlu, of each subject")
    options.add_argument("--batch_size", type=int, default=64)
    options.add_argument("--rounds", type=int, default=2)
    args = options.parse_args()
    prepare = generation if args.kind == "generation" else loglikelihoods
    with prepared(args) as (model, data, peak, weights):
        ways, requests, tokens = prepare(model, data, args)
    found = alternate(ways, [requests[:1], *[requests] * args.rounds], args.clock)
    first, *_, last = (rounds[0].value for rounds in found.values())
    case = "scoring" if args.kind == "generation" else args.kind
    rows = figures(case, found, [tokens(first)] * args.rounds, 2 * weights / peak)
    if args.kind == "generation":
        same = sum(a == b for a, b in zip(first, last, strict=True))
        print(f"{same} of {len(requests)} prompts answered alike (rounding differs between batch sizes)")
    else:
        print(f"log-likelihoods differ by {max(abs(a[0] - b[0]) for a, b in zip(first, last, strict=True)):.1e} nats")
    write(args, peak, rows)


if __name__ == "__main__":
    main()
