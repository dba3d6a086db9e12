"""Before training: make the model ready for packed rows, and compute what the reference model says."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from lume_unlearn.data.contexts import Context
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.examples import Examples
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method
from lume_unlearn.model import load
from lume_unlearn.model.forward import Passes, compile_layers, evaluating, use_packing
from lume_unlearn.model.masters import keep_masters
from lume_unlearn.model.reference import Reference, token_nlls
from lume_unlearn.model.teacher import Teacher, run_teacher
from lume_unlearn.training.arguments import UnlearningArguments, is_adapted
from lume_unlearn.training.distributed import by_deepspeed, in_bfloat16, sharded
from lume_unlearn.training.loss import LossTerms


def prepare_model(model: Any, method: Method, args: UnlearningArguments) -> Passes:
    """Make a model ready for training, in place, and return its forward passes.

    It moves to the device of this process unless it is sharded later, trained weights in half precision become float32
    (with ``weights="bfloat16"`` they become bfloat16), and its attention is switched to packed rows where that works.
    Without an adapter, frozen weights get the same data type, since layers cannot mix two.

    Raises:
        ConfigError: the attention named does not work, or the model has not the layer that the method names.
    """
    # cuDNN plans again for every sequence length, and lengths change from one micro-batch to the next.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not sharded():
        model.to(args.device)
    wanted = torch.bfloat16 if args.weights == "bfloat16" else torch.float32
    together = not is_adapted(model)
    for weight in model.parameters():
        if (weight.requires_grad or together) and weight.dtype in (torch.float16, torch.bfloat16, torch.float32):
            weight.data = weight.data.to(wanted)
    with evaluating(model), _autocast(model.device, args):
        use_packing(model.get_base_model() if isinstance(model, PeftModel) else model, args.attention)
    args.use_cache = getattr(model.config, "use_cache", True)  # Trainer sets the model's; a saved one would be slow
    if method.needs.hidden_states:
        return load.passes_to_layer(model, int(getattr(method, "layer")))  # noqa: B009
    return Passes(model)


def require_known_tokens(model: Any, rows: Iterable[Tokens]) -> None:
    """Raise `ConfigError` for tokens without an embedding: looking one up crashes a GPU."""
    highest = max(max(row.input_ids) for row in rows)
    known = model.get_input_embeddings().num_embeddings
    if highest >= known:
        raise ConfigError(
            f"--model: token id {highest} is outside the embedding table ({known} rows): is this the model's own "
            "tokenizer?"
        )


def compute_reference(
    model: Any,
    args: UnlearningArguments,
    terms: LossTerms,
    examples: Examples,
    contexts: Mapping[Tokens, Sequence[Context]],
    needs_reference: bool,
) -> None:
    """Compute what the method needs of the reference model, which ``model`` still is, before the first step.

    Puts the reference NLL and the teacher's hidden states into ``examples``, and teacher and reference model into
    ``terms``. With ``weights="masters"`` the model is rounded first.

    Args:
        model: not yet wrapped by accelerate.
        args: of the training.
        terms: computes the loss.
        examples: the encoded rows.
        contexts: what the counterfactual teacher reads of each forget row; none without a teacher.
        needs_reference: whether the reference model runs in every step.

    Raises:
        ConfigError: the model cannot do what the method needs.
    """
    method = terms.method
    if args.weights == "masters":
        keep_masters(model)
    if contexts or method.needs.reference_nll:
        model.to(args.device)
        assert args.max_tokens is not None
        with _autocast(args.device, args):
            if contexts:
                terms.teacher, examples.teacher, examples.reference = _teach(model, args, terms, contexts)
            else:
                rows = [row for side in method.needs.reference_nll for row in getattr(examples, side)]
                passes = Passes(model) if terms.passes.layer is not None else terms.passes
                examples.reference = token_nlls(model, passes, rows, args.max_tokens, args.device)
    if needs_reference:
        # DeepSpeed partitions frozen weights in place, so a copy cannot share them.
        terms.reference = Reference(model, terms.passes, args.reference_copy, share=not by_deepspeed())


def ready_to_step(model: Any, args: UnlearningArguments, terms: LossTerms) -> None:
    """Compile the layers of the model and of its reference copy, and set the arithmetic of forward passes, in place."""
    if args.torch_compile:
        compile_layers(model)
        if terms.reference is not None and terms.reference.compiles:
            compile_layers(terms.reference.copy)
    if args.bf16:
        load.keep_adapter_inputs_bfloat16(model)
        if sharded():
            in_bfloat16(model, args.device.type)


def _teach(
    model: Any, args: UnlearningArguments, terms: LossTerms, contexts: Mapping[Tokens, Sequence[Context]]
) -> tuple[Teacher, dict[Tokens, Any], dict[Tokens, Tensor]]:
    assert args.max_tokens is not None
    teacher, cache, nlls = run_teacher(model, terms.passes, contexts, args.max_tokens, args.device)
    return teacher, cache if terms.method.token_loss else {}, nlls


def _autocast(device: torch.device, args: UnlearningArguments) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(args.bf16))
