"""The reference model: its NLL once before training, and its logits or hidden states during training."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState, cpu_offload
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.packs import Pack
from lume_unlearn.model.forward import Passes, evaluating, row_values
from lume_unlearn.model.load import require_torchao
from lume_unlearn.model.weights import convert_weights


@torch.no_grad()
def token_nlls(model: nn.Module, passes: Passes, rows: Sequence[Tokens], max_tokens: int) -> dict[Tokens, Tensor]:
    """Compute the NLL in nats of each row's labelled tokens, (n,) float32 on the CPU, without dropout.

    Rows of similar length share a forward pass, and several processes share the rows.
    """
    state = PartialState()
    order = sorted(set(rows), key=lambda row: (len(row.input_ids), row.input_ids))
    own = order[state.process_index :: state.num_processes]
    found = list(zip(own, row_values(model, passes, own, max_tokens), strict=True))
    return dict(gather_object(found)) if state.num_processes > 1 else dict(found)


class Reference:
    """The model before training, for losses that need its logits or hidden states in each step.

    With LoRA this is the model in training without its adapter, which needs no second copy of the weights. Otherwise it
    is a frozen copy, made before the first step, that shares the weights that are not trained.
    """

    def __init__(self, model: Any, passes: Passes, kind: str = "same", share: bool = True, bf16: bool = False) -> None:
        """Copy the model, unless it is a PEFT model; call this ahead of the first step.

        ``kind`` is "same" as the model, "bfloat16" or "int8" (smaller and rounded), or "cpu": stored in CPU memory, and
        moved to the GPU layer by layer during each forward pass. With ``share``, a copy of kind "same" or "cpu" uses
        the model's frozen weights. With ``bf16``, forward passes of a copy are in bfloat16; accelerate does not wrap
        it.

        Raises:
            ConfigError: int8 needs torchao, which is not installed.
        """
        if kind == "int8":
            require_torchao("--reference_copy int8")
        self.model, self.passes, self.bf16 = model, passes, bf16
        self.copy: Any = None
        self.placed = kind == "cpu"
        if isinstance(model, PeftModel):
            return
        share = share and kind not in ("bfloat16", "int8")
        shared = {id(p): p for p in model.parameters() if share and not p.requires_grad}
        self.copy = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self.passes = Passes(self.copy, passes.layer)
        _convert(self.copy, kind)

    @torch.no_grad()
    def at(self, model: nn.Module, batch: Pack) -> Callable[[slice], Tensor]:
        """Run a forward pass of the reference model, without dropout (see `Passes.reference_at`).

        ``model`` is the model in training, as accelerate wrapped it. Every process must run the same forward passes.
        """
        if self.copy is None:
            with self.model.disable_adapter(), evaluating(model):
                return self.passes.reference_at(model, batch)
        if not self.placed:
            self.copy.to(batch.input_ids.device)
            self.placed = True
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            return self.passes.reference_at(self.copy, batch)


def _convert(model: nn.Module, kind: str) -> None:
    """Reduce the memory of a frozen copy, or move it to the CPU, in place."""
    if kind == "bfloat16":
        convert_weights(model.parameters(), torch.bfloat16)
    elif kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())
    elif kind == "cpu" and torch.cuda.is_available():
        cpu_offload(model, execution_device=torch.device("cuda", torch.cuda.current_device()))
