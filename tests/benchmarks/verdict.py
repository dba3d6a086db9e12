"""The verdict on sets of persons of LUME's Task 2, a line each; for its false alarms name a retrained model.

python tests/benchmarks/verdict.py --model RETRAINED --before TARGET --data LUME --split test --sets 20
"""

import argparse
import importlib
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from lume_tasks.data.locate import load_rows
from lume_tasks.data.rows import SIDES
from lume_tasks.tasks.known import Matcher
from lume_unlearn import verdict
from lume_unlearn.model.load import load_model, load_tokenizer


def main() -> None:
    """Judge one set of persons after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "before", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first set, to share the work")
    parser.add_argument("--persons", type=int, default=5, help="of each side")
    parser.add_argument("--probes", help="separated by commas; by default all")
    options = parser.parse_args()
    model, before = (load_model(name, torch.float32).eval() for name in (options.model, options.before))
    tokenizer = load_tokenizer(options.model)
    rows = {
        side: [row for row in found if row.task == "Task2"]
        for side, found in load_rows(Path(options.data), options.split).items()
    }
    persons = {side: sorted({row.stem for row in rows[side]}) for side in SIDES}
    # Which words are a row's own is judged against all retain rows, of which a set has only a few.
    matcher = partial(Matcher, retain=rows["retain"])
    module = importlib.import_module("lume_unlearn.audit.verdict")
    probes = options.probes.split(",") if options.probes else None
    for number in range(options.first, options.first + options.sets):
        start = number * options.persons
        some = {side: set(persons[side][start : start + options.persons]) for side in SIDES}
        chosen = {side: [row for row in rows[side] if row.stem in some[side]] for side in SIDES}
        with mock.patch.object(module, "Matcher", lambda one, _: matcher(one)):
            found = verdict(model, tokenizer, **chosen, before=before, probes=probes)
        print(found.status, found.swaps["now"].get("forget"), *found.lines(), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
