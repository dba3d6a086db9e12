"""Let the counterfactual teacher read the forget rows before training."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from lume_unlearn.config import RunConfig
from lume_unlearn.data.contexts import Context
from lume_unlearn.data.dataset import Sides
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.inputs import Inputs
from lume_unlearn.files import write_text, writing
from lume_unlearn.model import load
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.teacher import Teacher, lesson

_log = logging.getLogger("lume_unlearn")


def teach(
    config: RunConfig,
    model: Any,
    passes: Passes,
    sides: Sides,
    contexts: Mapping[Tokens, Sequence[Context]],
) -> Teacher | None:
    """Compute what the teacher says of the forget rows, and put it into ``sides``: its NLL as the reference's.

    Args:
        config: of the run.
        model: not yet changed by any step; moved to the device of this process.
        passes: its forward passes.
        sides: the rows.
        contexts: what the teacher reads of each forget row (see `teacher_contexts`).

    Returns:
        The teacher; None if there are neither contexts nor windows, for `level` without one.

    Raises:
        ConfigError: see `Teacher`.
    """
    if not (config.params["contexts"] or config.params["window"]):
        return None
    device = PartialState().device
    model.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=load.use_bfloat16(config.precision)):
        teacher, seen, nlls = lesson(model, passes, contexts, config.max_tokens, device)
    sides.reference = nlls
    sides.seen = seen if config.spec.per_token_loss else {}
    if PartialState().is_main_process:
        level = float(torch.stack([nll.mean() for nll in nlls.values()]).mean())
        cut = sum(len(own[0].texts) > 1 for own in contexts.values())
        windows = f" ({cut} of them prose, from the last {config.params['window']:g} tokens)" if cut else ""
        print(f"the teacher's NLL of {len(nlls)} forget rows is {level:.3f} nats a token{windows}", flush=True)
    return teacher


def write_substitutes(output: Path, inputs: Inputs) -> None:
    """Write `substitutes.jsonl`, for the user to see: the words of each forget row and their substitutes."""
    pairs = list(zip(inputs.forget, inputs.variants, strict=True))
    lines = [
        json.dumps({"id": row.id, "contexts": [v.words for v in found]}, ensure_ascii=False) for row, found in pairs
    ]
    unchanged = [row.id for row, found in pairs if not any(variant.words for variant in found)]
    with writing(output):
        write_text(output / "substitutes.jsonl", "\n".join(lines) + "\n")
    if unchanged:
        text = "%d of %d forget rows have nothing to substitute, so the teacher knows them; the first is %s"
        _log.warning(text, len(unchanged), len(pairs), unchanged[0])
