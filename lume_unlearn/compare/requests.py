"""Several requests one after the other: the forget rows in parts, unlearned in turn. What comes back?"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lume_tasks.data import locate
from lume_tasks.data.rows import Row
from lume_unlearn.compare.judge import judged
from lume_unlearn.config import RunConfig
from lume_unlearn.evaluation.subject import write_sides
from lume_unlearn.training.run import unlearned


def parts_of(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """Divide rows into ``count`` parts by document, in their order, one document after the other to the next part."""
    stems = list(dict.fromkeys(row.stem for row in rows))
    number = {stem: index % count for index, stem in enumerate(stems)}
    return [[row for row in rows if number[row.stem] == part] for part in range(count)]


def in_turn(run: RunConfig, data: Path, count: int, batch_size: int) -> list[list[float]]:
    """Unlearn the parts of the forget rows of ``data`` in turn, each from the model that the one before left.

    Args:
        run: options of each run; all retain rows are used in each.
        data: data directory.
        count: requests.
        batch_size: prompts of one scoring batch.

    Returns:
        After each request, the share of tokens ranked first in the rows of each part so far: [[part 1], [part 1,
        part 2], ...]. What a request before had forgotten comes back if its share rises.
    """
    rows = locate.load_rows(data)
    found: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        parts, model_path = [], run.model
        for number, part in enumerate(parts_of(rows["forget"], count)):
            parts.append(Path(folder) / f"part{number}")
            write_sides(parts[-1], {"forget": part, "retain": rows["retain"]})
            model, tokenizer = unlearned(
                replace(run, model=model_path, data=str(parts[-1]), split="all"), lambda monitor: []
            )
            if hasattr(model, "merge_and_unload"):
                model = model.merge_and_unload()
            model_path = f"{folder}/model{number}"
            model.save_pretrained(model_path)
            tokenizer.save_pretrained(model_path)
            numbers = [judged(model, tokenizer, path, batch_size) for path in parts]
            found.append([part_numbers["forget_exact_memorization"] for part_numbers in numbers])
    return found
