"""What is wrong with the options of a run: contradictions, and what its method does not support."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lume_unlearn.config import RunConfig

TUNINGS = "lora|full|last:[1-9][0-9]*|modules:.+"


def source_faults(forget: str | None, data: str | None, split: str) -> list[str]:
    """List contradictions between ``--forget`` and the options that select rows from a data directory."""
    if forget is not None and (data is not None or split != "all"):
        return ["--forget: names the rows already; drop --data and --split, or --forget"]
    return []


def contradictions(config: "RunConfig") -> list[str]:
    """List options that contradict each other."""
    faults = source_faults(config.forget, config.data, config.split)
    if not re.fullmatch(TUNINGS, config.tuning):
        faults.append(f"--tuning {config.tuning!r}: choose lora, full, last:K (K layers) or modules:REGEX")
    if config.retain is not None and config.forget is None:
        faults.append("--retain: give --forget with it, or name a directory with both by --data")
    if config.forget is not None and config.retain is None and config.needs_retain:
        faults.append("--forget: give --retain with it, since the retain term needs rows (--retain_term none does not)")
    if config.compile and config.gradient_checkpointing:
        faults.append("--compile true: compiles nothing with --gradient_checkpointing true; choose one")
    if config.tuning == "lora" and config.weights != "float32":
        faults.append(f"--weights {config.weights}: an adapter is small and stays float32; drop it with --tuning lora")
    if config.protect != "none" and not config.needs_retain:
        faults.append(f"--protect {config.protect}: needs a retain term; drop --protect, or choose a --retain_term")
    if config.stop_when == "level" and config.unseen is None:
        faults.append("--stop_when level: needs --unseen FILE, texts whose NLL is the level to reach")
    if config.stop_when != "none" and not config.watch_steps:
        faults.append("--watch_steps 0: --stop_when measures every watch_steps; give a number above 0")
    if config.evaluate_every == "epoch":
        if config.forget is not None:
            faults.append("--evaluate_every epoch: the tasks read a data directory; name it with --data, not --forget")
        task, _, metric = config.best_metric.partition(".")
        if task not in config.scored_tasks or not metric:
            faults.append(f"--best_metric {config.best_metric}: TASK.METRIC with a task of --evaluate_tasks")
    return faults


def method_faults(config: "RunConfig") -> list[str]:
    """List options that the method does not support."""
    method, name, faults = config.spec, config.method, []
    if config.retain_term not in method.retain_terms:
        faults.append(f"--retain_term {config.retain_term}: {name} can have {', '.join(method.retain_terms)}")
    if method.alternative == "file" and config.alternatives is None:
        faults.append(f"--method {name}: needs --alternatives FILE (`lume-unlearn alternatives` writes one)")
    if method.alternative != "file" and config.alternatives is not None:
        faults.append(f"--alternatives {config.alternatives}: {name} does not use them; drop --alternatives")
    if config.compile and method.hidden_states:
        faults.append(f"--compile true: not supported for {name}, which hooks decoder layers; drop --compile")
    if method.negated and config.on_collapse == "rollback":
        faults.append(f"--on_collapse rollback: {name} makes its weights after training; use warn or stop")
    if (method.negated or method.phases) and config.evaluate_every == "epoch":
        faults.append(f"--evaluate_every epoch: not supported for {name}; score its result, or its checkpoints")
    wrapped = [f"--{option}" for option in ("robust", "protect") if getattr(config, option) != "none"]
    if wrapped and (method.normalised or method.negated):
        why = "normalises its gradients" if method.normalised else "trains on the forget rows"
        faults.append(f"{', '.join(wrapped)}: not supported for {name}, which {why}")
    if wrapped and config.weights != "float32":
        faults.append(f"--weights {config.weights}: not supported with {', '.join(wrapped)}, which need float32")
    if config.robust == "path" and method.hidden_states:
        faults.append(f"--robust path: not supported for {name}, whose forward pass ends at a layer; use sam")
    if config.stop_when != "none" and (method.negated or method.phases):
        faults.append(f"--stop_when: not supported for {name}, which needs all its steps")
    if config.substitutes is not None and not method.teacher:
        faults.append(f"--substitutes: {name} has no counterfactual teacher; drop --substitutes")
    if config.unseen is not None and not method.teacher and config.stop_when != "level":
        faults.append(f"--unseen: neither {name} nor --stop_when level follows these texts; drop --unseen")
    if method.teacher:
        faults += _teacher_faults(config)
    if method.phases and config.epochs % 1:
        faults.append(f"--epochs {config.epochs}: {name} needs a whole number")
    if method.phases and (config.lr_schedule, config.warmup) != ("linear", 0):
        faults.append(f"--lr_schedule, --warmup: {name} lets the learning rate fall to 0 in each phase; drop them")
    return faults


def _teacher_faults(config: "RunConfig") -> list[str]:
    """List what is missing for a counterfactual teacher, or for the level of `level` without one."""
    if config.params.get("contexts") or config.params.get("window"):
        return []
    if config.method != "level":
        return ["--contexts 0: the teacher predicts from nothing; give --contexts or --window"]
    return [] if config.unseen else ["--contexts 0: give --unseen FILE, whose level is then that of every row"]


def parameter_faults(config: "RunConfig") -> list[str]:
    """List parameters that the method does not have, or that are outside their range."""
    known, faults = config.spec.params, []
    for name, value in config.params.items():
        if name in known:
            fault = known[name].fault(value)
        else:
            fault = f"{config.method} has no such parameter (it has: {', '.join(known) or 'none'})"
        if fault:
            faults.append(f"--{name} {value}: {fault}")
    return faults
