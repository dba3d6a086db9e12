"""Draw a part of LUME by document, for comparisons that a small machine can do.

python tests/benchmarks/part_of_lume.py LUME OUT --documents 6 6 12 --nonmembers 36 --mmlu MMLU
python tests/benchmarks/part_of_lume.py LUME SECOND --documents 6 6 12 --nonmembers 36 --other_than OUT

The non-members that the part does not have are written to OUT/unseen.jsonl, for --unseen: texts like the attack's.
The same options draw the same part. Parts drawn with the same --seed share documents, unless one names the other.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd

from lume_tasks.data.locate import load_mia, load_rows
from lume_tasks.data.rows import SIDES, TASKS, completion_texts

SUBJECTS, QUESTIONS = 20, 5


def main() -> None:
    """Write forget and retain rows of the train split, the members among them, non-members, and a part of MMLU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lume", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, nargs=3, required=True, help="of Task 1, 2 and 3, for each side")
    parser.add_argument("--nonmembers", type=int, required=True)
    parser.add_argument("--mmlu", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--other_than", type=Path, nargs="+", default=[], help="parts whose documents are left out")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows = {}
    for side in SIDES:
        taken = {row.stem for part in options.other_than for row in load_rows(part)[side]}
        found = [row for row in load_rows(options.lume, "train")[side] if row.stem not in taken]
        chosen: set[str] = set()
        for task, count in zip(TASKS, options.documents, strict=True):
            chosen |= set(draw.sample(sorted({row.stem for row in found if row.task == task}), count))
        rows[side] = [row for row in found if row.stem in chosen]
        write(options.out / f"{side}.jsonl", [vars(row) for row in rows[side]])
    members, nonmembers = load_mia(options.lume)
    seen = {text for part in options.other_than for text in load_mia(part)[1]}
    nonmembers = [text for text in nonmembers if text not in seen]
    texts = completion_texts(rows["forget"])
    kept = [text for text in members if text.strip() in texts]
    write(options.out / "mia_data/member.jsonl", [{"document": text} for text in kept])
    write(options.out / "mia_data/nonmember.jsonl", [{"document": t} for t in nonmembers[: options.nonmembers]])
    write(options.out / "unseen.jsonl", [{"document": text} for text in nonmembers[options.nonmembers :]])
    if options.mmlu:
        subjects = sorted(path.parent for path in options.mmlu.glob("*/test*.parquet"))
        for subject in draw.sample(subjects, SUBJECTS):
            folder = options.out / "mmlu" / subject.name
            folder.mkdir(parents=True, exist_ok=True)
            questions = pd.read_parquet(next(subject.glob("test*")))
            questions.head(QUESTIONS).to_parquet(folder / "test-00000-of-00001.parquet")


def write(path: Path, objects: list[dict[str, Any]]) -> None:
    """Write objects as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(obj) + "\n" for obj in objects))


if __name__ == "__main__":
    main()
