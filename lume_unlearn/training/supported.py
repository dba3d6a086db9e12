"""Refuse options that a method, another option or a distributed launch does not support, before any computation."""

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from accelerate.utils import parse_flag_from_env
from peft import LoraConfig

from lume_unlearn.checks import raise_faults
from lume_unlearn.errors import ConfigError, log
from lume_unlearn.methods.base import Method
from lume_unlearn.methods.retain import reads_reference_logits
from lume_unlearn.model.load import require_peft
from lume_unlearn.model.masters import require_grad_dtype
from lume_unlearn.training.arguments import UnlearningArguments, is_adapted
from lume_unlearn.training.distributed import by_deepspeed, processes, sharded


def require_supported(
    method: Method, args: UnlearningArguments, model: Any, parts: Collection[str], given: dict[str, Any]
) -> None:
    """Refuse options that contradict each other, the method, the model's adapter or the launch.

    Args:
        method: the method.
        args: arguments, filled in (`filled_in`).
        model: the model to train.
        parts: the parts of the loss's retain term.
        given: the caller's "retain", "alternatives", "substitutes", "unseen" and "base"; empty or None if not given.

    Raises:
        ConfigError: the message names every option that cannot work, and what to do.
    """
    require_peft(model)
    adapted = is_adapted(model)
    raise_faults([*_method_faults(method, args, bool(parts), given), *_option_faults(method, args, adapted)])
    raise_faults(list(_launch_faults(method, args, adapted)))
    if adapted:
        _require_lora(model, method, parts)


def _require_lora(model: Any, method: Method, parts: Iterable[str]) -> None:
    """Refuse an adapter that is not LoRA, or of which PEFT cannot switch off all for the reference model."""
    config = model.peft_config[model.active_adapter]
    if not isinstance(config, LoraConfig):
        raise ConfigError(f"model: its adapter is of the kind {type(config).__name__}; only LoRA is supported")
    also = [name for name in ("modules_to_save", "use_dora") if getattr(config, name)]
    also += ["bias"] if config.bias != "none" else []
    if also and reads_reference(method, parts):
        raise ConfigError(
            f"model: its adapter has {', '.join(also)}, which is not supported with {method.name}: it needs the model "
            "without the adapter; leave it out, or train all weights"
        )


def reads_reference(method: Method, parts: Iterable[str]) -> bool:
    """Return whether a method uses the model without its adapter, in training or at its end."""
    return reads_reference_logits(method.needs, parts) or method.needs.persons or bool(method.negated)


def warn_of_used_adapter(model: Any, method: Method, parts: Iterable[str]) -> None:
    """Warn if the reference model lacks what the adapter to train, which was trained before, has learned."""
    if is_adapted(model) and reads_reference(method, parts):
        trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
        if any(".lora_B." in name and bool(weight.any()) for name, weight in trained):
            log.warning(
                "the adapter is not new: the reference model of %s is the model without it. If the adapter holds what "
                "the model knows, merge it first (lume_unlearn.merge) and add a new one",
                method.name,
            )


def _method_faults(
    method: Method, args: UnlearningArguments, needs_retain: bool, given: dict[str, Any]
) -> Iterator[str]:
    needs, name = method.needs, method.name
    if args.retain_term not in method.retain_terms:
        yield f"--retain_term {args.retain_term}: {name} supports {', '.join(method.retain_terms)}"
    if needs_retain and not given["retain"]:
        yield "--retain: the retain term needs retain rows; give some, or use --retain_term none"
    if needs.alternatives == "file" and not given["alternatives"]:
        yield f"--method {name}: needs --alternatives FILE (`lume-unlearn alternatives` writes one)"
    if needs.alternatives != "file" and given["alternatives"]:
        yield f"--alternatives: {name} does not use them; drop --alternatives"
    if given["substitutes"] is not None and not needs.teacher:
        yield f"--substitutes: {name} has no counterfactual teacher; drop --substitutes"
    if given["base"] is not None and not (needs.teacher or needs.persons):
        yield f"--base: {name} uses no base model; drop --base"
    if given["base"] is not None and by_deepspeed():
        yield "--base: not supported with DeepSpeed; use FSDP"
    if needs.persons and args.loss_on == "text":
        yield f"--loss_on text: {name} compares answers; drop it (--unseen FILE reads texts that name nobody whole)"
    if given["unseen"] is not None and not (needs.teacher or needs.persons):
        yield f"--unseen: {name} does not use these texts; drop --unseen"
    if needs.teacher and not has_teacher(method, given["base"]):
        if method.token_loss:
            yield "--contexts 0: the teacher needs contexts or a base model; raise --contexts, or give --base"
        elif given["unseen"] is None:
            yield f"--contexts 0: {name} has no target loss; give --unseen FILE, whose NLL becomes the target"
    if method.phases:
        if args.num_train_epochs is not None and args.num_train_epochs % 1:
            yield f"--num_train_epochs {args.num_train_epochs}: {name} needs a whole number"
        if (args.lr_scheduler_type, args.warmup_steps) != ("linear", 0):
            text = "lowers the learning rate to 0 in each phase; drop these options"
            yield f"--lr_scheduler_type, --warmup_steps: {name} {text}"


def has_teacher(method: Method, base: Any) -> bool:
    """Return whether a method has a teacher: a base model, or contexts from which the reference model predicts."""
    return method.needs.teacher and (base is not None or bool(getattr(method, "contexts", 0)))


def _option_faults(method: Method, args: UnlearningArguments, adapted: bool) -> Iterator[str]:
    name = method.name
    if args.torch_compile and args.gradient_checkpointing:
        yield "--torch_compile: compiles nothing with --gradient_checkpointing; choose one"
    if args.torch_compile and method.needs.hidden_states:
        yield f"--torch_compile: not supported for {name}, which hooks decoder layers; drop --torch_compile"
    if adapted and args.weights != "float32":
        yield f"--weights {args.weights}: an adapter is small and stays float32; drop --weights with --tuning lora"
    if method.negated and args.on_collapse == "rollback":
        yield f"--on_collapse rollback: {name} computes its weights after training; use warn or stop"
    if (method.negated or method.phases) and args.eval_strategy != "no":
        yield f"--eval_strategy: not supported for {name}; score its result after training"
    if args.save_strategy == "best":
        yield "--save_strategy best: --eval_strategy keeps the best weights in best/; choose no, steps or epoch"
    if args.robust != "none":
        if method.negated:
            yield f"--robust: not supported for {name}, which learns the forget rows first; drop --robust"
        if args.weights != "float32":
            yield f"--weights {args.weights}: not supported with --robust, which needs float32; drop one of them"
        if args.robust == "path" and method.needs.hidden_states:
            yield f"--robust path: not supported for {name}, whose forward pass ends at a layer; use sam"


def _launch_faults(method: Method, args: UnlearningArguments, adapted: bool) -> Iterator[str]:
    """Yield the faults of an `accelerate launch` that this package, or this method, does not support."""
    name = f"--method {method.name}"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        yield f"accelerate's mixed_precision {precision}: set it to no, and use --bf16 instead"
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        yield (
            "accelerate's fsdp_cpu_ram_efficient_loading true: set it to false; it loads the weights in one process "
            "only, but every process runs the whole model once, to try packing"
        )
    if args.weights == "masters":
        require_grad_dtype()
        if not args.bf16:
            yield "--weights masters: needs bfloat16 arithmetic, which is off here; give --bf16, or drop --weights"
        elif processes() > 1 or sharded():
            yield "--weights masters: DDP, FSDP and DeepSpeed exchange gradients in bfloat16 then; use one process"
    if by_deepspeed():
        if method.phases:
            yield f"{name}: restarts its optimiser, which DeepSpeed does not allow; use FSDP or one process"
        if args.weights == "bfloat16":
            yield "--weights bfloat16: DeepSpeed keeps float32 weights as well; drop --weights"
        if args.on_collapse == "rollback":
            yield "--on_collapse rollback: DeepSpeed cannot restore weights; use warn or stop, or FSDP"
    if sharded():
        if method.negated and (by_deepspeed() or not adapted):
            yield f"{name}: needs unsharded weights at the end; use FSDP with --tuning lora, or one process"
        if method.needs.hidden_states:
            yield f"{name}: ends its forward pass inside the model, which sharding does not allow; use one process"
        if args.robust != "none":
            yield "--robust: needs unsharded weights; start without FSDP and DeepSpeed"
        if args.torch_compile:
            yield "--torch_compile: not supported with FSDP and DeepSpeed; drop --torch_compile"
        if args.eval_strategy != "no":
            yield "--eval_strategy: needs unsharded weights; score the result instead"
