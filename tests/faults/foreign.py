"""Results as the harness writes them, to be spoiled in every place; and what to spoil them with."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATE = "2024-01-01T00-00-00.000000"
MARKUP = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b]0;x\x07\x1b[2J\u202e\x00\ud800'\"`|$x$\n# h"
)
VALUES: list[Any] = [None, True, 3, -1, 1e308, -1e308, math.nan, math.inf, 10**400, 1e-320, "", "x" * 200, "7", MARKUP]
VALUES += [[], [1], [[]], ["a", {}], {}, {"a": 1}]


def results() -> dict[str, Any]:
    names = [f"{side}_{kind}" for side in ("forget", "retain") for kind in ("regurgitation", "knowledge")]
    scores: dict[str, dict[str, Any]] = {
        "lume_task1": {f"{name}{end},none": 0.5 for name in names for end in ("", "_low", "_high")},
        "lume_mia": {"loss_auc,none": 0.7, "loss_auc_low,none": 0.6, "loss_auc_high,none": 0.8},
        "lume_score": {"final_score,none": 0.5, "missing,none": "lume_mmlu"},
        "lume_pii": {"forget_ssn_exact,none": 0.5},
    }
    return {
        "model_name": "/m/a",
        "config": {"model_args": {"pretrained": "/m/a"}, "limit": None},
        "date": 1e9,
        "results": scores,
        "configs": {task: {"metadata": {"lume_split": "all"}} for task in scores},
        "versions": dict.fromkeys(scores, 1.0),
        "n-samples": {task: {"effective": 4} for task in scores},
        "lm_eval_version": "0.4",
        "model_source": "hf",
    }


def samples() -> dict[str, list[dict[str, Any]]]:
    rows = []
    for number, (kind, name) in enumerate((("sc", "regurgitation"), ("qa", "knowledge"))):
        doc = {"id": f"p{number}{kind}0", "input": "Who is Ada?", "output": "Ada 900", "side": "forget", "kind": kind}
        logged = {"doc_id": number, "doc": doc, "filtered_resps": ["Ada"], f"forget_{name}": 1.0}
        rows.append(logged | {"prompt_hash": "p", "target_hash": "t"})
    mia = [{"doc_id": i, "doc": {"member": i % 2 == 0}, "loss_auc": [i % 2 == 0, -float(i)]} for i in range(4)]
    return {"lume_task1": rows, "lume_mia": mia}


def write(folder: Path, content: Any, logged: dict[str, list[Any]]) -> Path:
    """Write the files of one evaluation; text stands as it is, all else as JSON."""
    path = folder / f"results_{DATE}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for task, lines in logged.items():
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        content_ = "".join(f"{text}\n" for text in texts).encode(errors="surrogatepass")
        (folder / f"samples_{task}_{DATE}.jsonl").write_bytes(content_)
    return path


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested JSON, as keys and indices."""
    if before:
        yield before
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*before, key))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    copied = copy.deepcopy(content)
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return copied
