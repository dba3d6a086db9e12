"""Time `lume-unlearn run` as a process of its own; with --against, the one of another checkout in turn."""

import os
import subprocess
import sys
import time
from pathlib import Path

from common import Taken, encoded, figures, length, parser, prepared, write


def run(options: list[str], checkout: Path, clock: str) -> Taken:
    """Run with a checkout's packages; peak memory is the resident memory, `run` itself prints the GPU's."""
    command = [sys.executable, "-m", "lume_unlearn", "run", *options]
    start = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(checkout)})
    _, child.returncode, usage = os.wait4(child.pid, 0)
    if child.returncode:
        raise SystemExit(f"lume-unlearn run failed in {checkout}")
    seconds = usage.ru_utime + usage.ru_stime if clock == "cpu" else time.perf_counter() - start
    return Taken(seconds, usage.ru_maxrss * 1024)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--method", default="npo")
    options.add_argument("--tuning", choices=["full", "lora"], default="full")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--against", type=Path, help="another checkout, the baseline of the ratio")
    options.add_argument("--rounds", type=int, default=1)
    args = options.parse_args()
    checkouts = {"baseline": args.against.resolve()} if args.against else {}
    checkouts["this checkout"] = Path(__file__).resolve().parents[2]
    found: dict[str, list[Taken]] = {name: [] for name in checkouts}
    with prepared(args) as (model, data, peak, weights):
        rows = encoded(model, data)
        shared = ["--model", model, "--data", str(data), "--method", args.method, "--tuning", args.tuning]
        shared += ["--epochs", str(args.epochs), "--precision", args.precision, "--seed", str(args.seed)]
        for number in range(args.rounds):
            for name, checkout in checkouts.items():
                found[name].append(run([*shared, "--output", f"{args.work}/{number} {name}"], checkout, args.clock))
    retain = length(rows["retain"]) * len(rows["forget"]) / len(rows["retain"])  # a retain row beside each forget row
    share = (4 if args.tuning == "lora" else 6) * weights / peak
    tokens = [round(args.epochs * (length(rows["forget"]) + retain))] * args.rounds
    write(args, peak, figures(f"{args.tuning} {args.method}", found, tokens, share))


if __name__ == "__main__":
    main()
