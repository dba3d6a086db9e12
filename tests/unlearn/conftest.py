"""Results as the harness writes them, for the report and the card; models and data for comparisons."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from lume_unlearn.scoring import score
from tests.conftest import make_model, make_rows, make_tokenizer, write_rows


@pytest.fixture
def write_results(tmp_path: Path) -> Callable[..., Path]:
    """Write what `lm_eval --output_path ... --log_samples` writes; returns the results file."""

    def make(
        model: str,
        scores: dict[str, dict[str, Any]],
        samples: dict[str, list[dict[str, Any]]] | None = None,
        metadata: dict[str, Any] | None = None,
        folder: str | None = None,
        made: float = 1e9,
        **content: Any,
    ) -> Path:
        date = datetime.fromtimestamp(made, timezone.utc).strftime("%Y-%m-%dT%H-%M-%S.%f")
        target = tmp_path / "results" / (folder or re.sub(r"\W", "_", model)[-80:])
        target.mkdir(parents=True, exist_ok=True)
        results = {
            task: {"alias": task} | {f"{name},none": value for name, value in metrics.items()}
            for task, metrics in scores.items()
        }
        tasks = {
            "results": results,
            "configs": {task: {"metadata": {"version": 1.0} | (metadata or {})} for task in scores},
            "versions": dict.fromkeys(scores, 1.0),
            "n-samples": {task: {"original": 4, "effective": 4} for task in scores if task != "lume_score"},
        }
        whole = {"model_name": model, "config": {"model_args": {"pretrained": model}}, "date": made} | tasks | content
        path = target / f"results_{date}.json"
        path.write_text(json.dumps(whole))
        for task, lines in (samples or {}).items():
            (target / f"samples_{task}_{date}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return make


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Generate 8 new tokens instead of 256, because the random model does not stop."""
    manager, evaluate = score.task_manager, score.evaluate

    def any_generation(tokenizer: Any, data: Any, tasks: Any, chat: Any = True, metadata: Any = None) -> Any:
        return manager(tokenizer, data, tasks, chat, {"lume_gen_kwargs": True} | dict(metadata or {}))

    def shorter(lm: Any, tasks: Any, manager: Any, **options: Any) -> Any:
        options["gen_kwargs"] = {"max_gen_toks": 8} | options.get("gen_kwargs", {})
        return evaluate(lm, tasks, manager, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "task_manager", any_generation)
        patch.setattr(score, "evaluate", shorter)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a retrained model, one with another tokenizer, and data with members and unseen documents."""
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("target", 0), ("retrained", 1)):
        make_model(seed=seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    make_model().save_pretrained(folder / "other")
    make_tokenizer(bos=True).save_pretrained(folder / "other")
    forget = make_rows("forget", 24)
    others = [json.dumps({"id": row.id, "alternative": f"not {row.id}"}) for row in forget]
    (folder / "alternatives.jsonl").write_text("\n".join(others))
    write_rows(folder / "data" / "forget.jsonl", forget)
    write_rows(folder / "data" / "retain.jsonl", make_rows("retain", 24))
    texts = {"member": [f"{r.input} {r.output}" for r in forget if r.kind == "sc"]}
    texts["nonmember"] = [f"Nobody saw the text {i}." for i in range(12)]
    (folder / "data" / "mia_data").mkdir()
    for name, documents in texts.items():
        lines = "".join(json.dumps({"document": text}) + "\n" for text in documents)
        (folder / "data" / "mia_data" / f"{name}.jsonl").write_text(lines)
    return folder
