"""Time the answers to prompts of the tasks: the harness's `hf` with one prompt at a time, and with batches."""

from functools import partial
from unittest.mock import patch

from common import DEVICE, alternate, figures, parser, prepared, write
from lm_eval.models.huggingface import HFLM

from lume_unlearn.evaluation.harness import data_metadata, score


def answer(lm: HFLM, batch_size: int, requests: list) -> list[str]:
    lm.batch_size_per_gpu = batch_size
    return lm.generate_until(requests, disable_tqdm=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--prompts", type=int, default=12, help="the first ones of each task, in equal shares")
    options.add_argument("--batch_size", type=int, default=64)
    options.add_argument("--rounds", type=int, default=2)
    args, tasks = options.parse_args(), ("lume_task1", "lume_task2", "lume_task3")
    with prepared(args) as (model, data, peak, weights):
        lm = HFLM(pretrained=model, dtype=args.precision, device=DEVICE.type, batch_size=1)
        with patch.object(lm, "generate_until", side_effect=lambda requests: [""] * len(requests)) as generate:
            score(lm, data_metadata(data), tasks, limit=-(-args.prompts // len(tasks)))
        requests = generate.call_args.args[0]
    ways = {f"batches of {size}": partial(answer, lm, size) for size in (1, args.batch_size)}
    found = alternate(ways, [requests[:1], *[requests] * args.rounds], args.clock)
    one, batched = (rounds[0].value for rounds in found.values())
    tokens = sum(len(lm.tok_encode(text)) for text in [request.args[0] for request in requests] + one)
    rows = figures("scoring", found, [tokens] * args.rounds, 2 * weights / peak)
    same = sum(a == b for a, b in zip(one, batched, strict=True))
    print(f"{same} of {len(requests)} prompts answered alike (rounding differs between batch sizes)")
    write(args, peak, rows)


if __name__ == "__main__":
    main()
