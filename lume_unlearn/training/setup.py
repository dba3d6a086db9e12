"""Before training: make the model ready for packed rows, and run the reference model or the teacher."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers.training_args import OptimizerNames

from lume_tasks.data.rows import Row
from lume_unlearn.data.contexts import Context, aligned
from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.examples import Examples
from lume_unlearn.data.substitutes import Variant
from lume_unlearn.errors import ConfigError, log
from lume_unlearn.files import write_text, writing
from lume_unlearn.methods.base import Method
from lume_unlearn.methods.retain import reads_reference_logits
from lume_unlearn.model import load
from lume_unlearn.model.forward import Passes, compile_layers, evaluating, placed, use_packing
from lume_unlearn.model.masters import keep_masters
from lume_unlearn.model.reference import Reference, token_nlls
from lume_unlearn.model.teacher import run_teacher, teacher_states
from lume_unlearn.model.weights import convert_weights
from lume_unlearn.training.arguments import UnlearningArguments, is_adapted
from lume_unlearn.training.distributed import by_deepspeed, in_bfloat16, sharded

if TYPE_CHECKING:
    from lume_unlearn.training.trainer import UnlearningTrainer


def prepare_model(model: Any, method: Method, args: UnlearningArguments) -> Passes:
    """Make a model ready for training, in place, and return its forward passes.

    The model moves to the device of this process unless it is sharded later. Trained weights become float32, or
    bfloat16 with ``weights="bfloat16"``; without an adapter, frozen weights get the same data type, since layers cannot
    mix two. Attention is switched to packed rows if the model supports them.

    Raises:
        ConfigError: all weights are frozen or on several devices, the attention named does not work, or the model lacks
            the layer that the method names.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(
            "model: all its weights are frozen, so there is nothing to train; load an adapter with "
            "PeftModel.from_pretrained(..., is_trainable=True), and call requires_grad_(True) of other models"
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise ConfigError(
            "model: its layers are on several devices, and training needs them on one; load it without device_map, and "
            "start with accelerate to train on several GPUs"
        )
    # cuDNN plans again for every sequence length, and lengths change from one micro-batch to the next.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not sharded():
        model.to(args.device)
    wanted = torch.bfloat16 if args.weights == "bfloat16" else torch.float32
    together = not is_adapted(model)
    convert_weights((weight for weight in model.parameters() if weight.requires_grad or together), wanted)
    if args.attention.startswith("flash") and model.get_input_embeddings().weight.dtype == torch.float32:
        raise ConfigError(
            f"--attention {args.attention}: does not compute with weights in float32; leave it out (the default, auto, "
            "uses FlashAttention 2 of torch), or use --tuning lora or --weights bfloat16"
        )
    with evaluating(model), _autocast(model.device, args):
        use_packing(model.get_base_model() if isinstance(model, PeftModel) else model, args.attention)
    args.use_cache = getattr(model.config, "use_cache", True)  # Trainer sets the model's; False, if saved, is slow
    if method.needs.hidden_states:
        return load.passes_to_layer(model, int(getattr(method, "layer")))  # noqa: B009
    return Passes(model)


def optimizer_class(args: UnlearningArguments) -> tuple[Any, dict[str, Any]] | None:
    """Return torchao's optimiser with stochastic rounding, and its arguments, for bfloat16 weights; else None.

    Raises:
        ConfigError: torchao is not installed, or has no such optimiser.
    """
    if args.optim == OptimizerNames.ADAMW_TORCH_8BIT:
        load.require_torchao(f"--optim {OptimizerNames.ADAMW_TORCH_8BIT.value}")
    if args.weights != "bfloat16":
        return None
    load.require_torchao("--weights bfloat16")
    from torchao.optim import AdamW8bit, _AdamW

    known = {
        OptimizerNames.ADAMW_TORCH: _AdamW,
        OptimizerNames.ADAMW_TORCH_FUSED: _AdamW,
        OptimizerNames.ADAMW_TORCH_8BIT: AdamW8bit,
    }
    optim = OptimizerNames(args.optim)
    if optim not in known:
        raise ConfigError(f"--optim {optim.value}: --weights bfloat16 needs one of {', '.join(n.value for n in known)}")
    return known[optim], {"lr": args.learning_rate, "bf16_stochastic_round": True}


def matching(base: Any, model: Any) -> Any:
    """Return ``base``, a model or None; raise `ConfigError` if its output layer differs in shape from the model's."""
    ours, theirs = (one.get_output_embeddings().weight.shape for one in (model, model if base is None else base))
    if ours != theirs:
        raise ConfigError(
            f"--base: its output layer has shape {tuple(theirs)}, that of --model {tuple(ours)}; name the model that "
            "--model was fine-tuned from"
        )
    return base


def require_known_tokens(model: Any, rows: Iterable[Tokens]) -> None:
    """Raise `ConfigError` for tokens without an embedding: looking one up crashes a GPU."""
    highest, table = max(max(row.input_ids) for row in rows), model.get_input_embeddings()
    known = getattr(table, "base_layer", table).num_embeddings  # below an adapter of the embeddings
    if highest >= known:
        raise ConfigError(
            f"--model: token id {highest} is outside the embedding table ({known} rows): is this the model's own "
            "tokenizer?"
        )


def compute_reference(trainer: "UnlearningTrainer", contexts: Mapping[Tokens, Sequence[Context]]) -> None:
    """Compute what the method needs from the reference model, which is the trainer's model before the first step.

    The trainer's ``examples`` get the reference NLL and the teacher's hidden states, its ``terms`` get the teacher and
    the reference model. With ``weights="masters"`` the model is rounded first.

    Args:
        trainer: the trainer; accelerate has not wrapped its model yet.
        contexts: the teacher's contexts of each forget row, or of each imitation; empty without a teacher.

    Raises:
        ConfigError: the model cannot do what the method needs.
    """
    model: Any = trainer.model
    args, terms, examples, needs = trainer.args, trainer.terms, trainer.examples, trainer.method.needs
    if args.weights == "masters":
        keep_masters(model)
    if contexts or needs.reference_nll:
        model.to(args.device)
        with _autocast(args.device, args):
            if contexts:
                also = trainer.base if needs.persons else None
                teacher = model if trainer.base is also else trainer.base
                passes = terms.passes if teacher is model else Passes(teacher)
                with placed(teacher, args.device):
                    terms.teacher, cache = run_teacher(
                        teacher, passes, contexts, trainer.max_tokens, also, examples.unseen
                    )
                if needs.teacher:
                    head = terms.teacher
                    examples.reference = {row: head.nll(row, found, args.device) for row, found in cache.items()}
                    if teacher is model and needs.blend:
                        plain = {row: [aligned(row, row)] for row in contexts}
                        cache = teacher_states(model, passes, plain, trainer.max_tokens)
                examples.teacher = cache if trainer.method.token_loss or needs.persons else {}
            else:
                rows = [row for side in needs.reference_nll for row in getattr(examples, side)]
                examples.reference = token_nlls(model, trainer.logit_passes, rows, trainer.max_tokens)
    if reads_reference_logits(needs, terms.retain_parts):
        # DeepSpeed partitions frozen weights in place, so a copy cannot share them.
        share, bf16 = not by_deepspeed(), bool(args.bf16)
        terms.reference = Reference(model, terms.passes, args.reference_copy, share, bf16)


def ready_to_step(model: Any, args: UnlearningArguments, reference: Reference | None) -> None:
    """Compile the layers of the model and its reference copy, and set the data types of forward passes, in place."""
    if args.torch_compile:
        compile_layers(model)
        if reference is not None and reference.copy is not None and args.reference_copy in ("same", "bfloat16"):
            compile_layers(reference.copy)
    if args.bf16:
        load.keep_adapter_inputs_bfloat16(model)
        if sharded():
            in_bfloat16(model, args.device.type)


def _autocast(device: torch.device, args: UnlearningArguments) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(args.bf16))


def write_substitutes(output: Path, forget: Sequence[Row], found: Sequence[Sequence[Variant]]) -> None:
    """Write ``substitutes.jsonl`` for the user: the substituted words of each forget row, with their substitutes."""
    pairs = list(zip(forget, found, strict=True))
    lines = [json.dumps({"id": row.id, "contexts": [v.words for v in own]}, ensure_ascii=False) for row, own in pairs]
    with writing(output):
        write_text(output / "substitutes.jsonl", "\n".join(lines) + "\n")
    unchanged = [row.id for row, own in pairs if not any(variant.words for variant in own)]
    if unchanged:
        text = "%d of %d forget rows have nothing to substitute, so the teacher knows these rows; the first is %s"
        log.warning(text, len(unchanged), len(pairs), unchanged[0])


def print_levels(forget: Sequence[Row], examples: Examples) -> None:
    """Print the teacher's NLL of the forget rows, by task and kind; unseen texts should have about the same."""
    found: dict[str, list[float]] = {}
    rows = {row.id: row for row in forget}
    for tokens, row_id in zip(examples.forget, examples.ids["forget"], strict=True):
        row = rows[row_id]
        kind = f"{row.task} {'texts' if row.kind == 'sc' else 'questions'}"
        found.setdefault(kind, []).append(float(examples.reference[tokens].mean()))
    levels = [f"{fmean(values):.2f} for {len(values)} {kind}" for kind, values in found.items()]
    print(f"the teacher's NLL of forget rows, nats a token: {', '.join(levels)}", flush=True)
