"""Follow the level of unseen texts during training, and end a run before it forgets more than that."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from lume_unlearn.data.encode import Tokens
from lume_unlearn.data.inputs import Inputs, member_documents, watched
from lume_unlearn.methods.masc import masc_margin, masc_tau
from lume_unlearn.methods.registry import METHODS
from lume_unlearn.model.forward import Passes, evaluating, row_values
from lume_unlearn.training.trainer import UnlearningTrainer

_log = logging.getLogger("lume_unlearn")


def mean_level(
    model: nn.Module, passes: Passes, rows: Sequence[Tokens], max_tokens: int, device: torch.device
) -> float:
    """Compute the mean over rows of their mean NLL, in nats a token, without dropout."""
    with evaluating(model):
        values = row_values(model, passes, rows, max_tokens, device)
    return float(torch.stack([value.mean() for value in values]).mean())


MEASURED = 32
"""Forget rows, and unseen texts, that are measured."""


def follow_level(trainer: UnlearningTrainer, tokenizer: Any, context: int | None, inputs: Inputs) -> None:
    """Add the callbacks that the run's options ask for: `Level` and `StopWhen`.

    The attack's own documents decide nothing: forget rows that are member documents are not measured unless all are.
    """
    config = trainer.config
    unseen = watched(replace(config, loss_on="text"), tokenizer, context, inputs.unseen, MEASURED)
    if config.spec.teacher and unseen:
        trainer.add_callback(Level(trainer, unseen))
    if config.stop_when != "none":
        attacked = {document.strip() for document in member_documents(config)}
        others = [row for row in inputs.forget if f"{row.input} {row.output}".strip() not in attacked]
        measured = watched(config, tokenizer, context, others or inputs.forget, MEASURED)
        trainer.add_callback(StopWhen(trainer, measured, unseen))


class Level(TrainerCallback):
    """Measures how far the NLL of unseen texts has moved: ``shift``, which `methods.counterfactual.level_loss` adds.

    Without a teacher the level of every row is that NLL itself.
    """

    def __init__(self, trainer: UnlearningTrainer, unseen: Sequence[Tokens]) -> None:
        """``trainer``: whose method's state gets the shift; ``unseen``: the texts, encoded."""
        self.trainer, self.unseen = trainer, unseen

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure before the first step; a resumed run has the shift of its checkpoint."""
        values = self.trainer.progress.values
        if not state.global_step:
            values["unseen_nll"] = self.measured(model)
            with_teacher = bool(self.trainer.sides.reference)
            values["shift"] = 0.0 if with_teacher else values["unseen_nll"]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure again every `watch_steps`."""
        every, values = self.trainer.config.watch_steps, self.trainer.progress.values
        if every and state.global_step % every == 0:
            now = self.measured(model)
            values["shift"] = now - values["unseen_nll"] if self.trainer.sides.reference else now

    def measured(self, model: nn.Module) -> float:
        """Return the `mean_level` of the unseen texts."""
        config, device = self.trainer.config, self.trainer.args.device
        return mean_level(model, self.trainer.passes, self.unseen, config.max_tokens, device)


class StopWhen(TrainerCallback):
    """`--stop_when`: ends a run in the first measurement in which enough is forgotten, and keeps its weights.

    "masc" is the rule of MASC (arXiv 2606.02920): at most ``stop_share`` of the forget tokens have a margin above tau,
    with the run's parameters if its method is `masc`, else with the defaults of `masc`. "level" compares the NLL of
    forget rows with that of unseen texts.
    """

    def __init__(self, trainer: UnlearningTrainer, forget: Sequence[Tokens], unseen: Sequence[Tokens]) -> None:
        """``forget`` and ``unseen``: the rows and texts to measure."""
        self.trainer, self.forget, self.unseen = trainer, forget, unseen
        self.reason: str | None = None
        """Why the run ended early."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure when the monitor does; end the run if it is time."""
        every = self.trainer.config.watch_steps
        if not every or state.global_step % every:
            return
        self.reason = self.reached(model, state.global_step)
        if self.reason:
            control.should_training_stop = True
            if state.is_world_process_zero:
                _log.warning("%s", self.reason)

    def reached(self, model: nn.Module, step: int) -> str | None:
        """Say what was reached, or return None."""
        trainer = self.trainer
        config, passes, device = trainer.config, trainer.passes, trainer.args.device
        if config.stop_when == "level":
            forget = mean_level(model, passes, self.forget, config.max_tokens, device)
            unseen = mean_level(model, passes, self.unseen, config.max_tokens, device)
            text = f"the NLL of forget rows, {forget:.3f} nats a token, has reached that of unseen texts, {unseen:.3f}"
            return f"--stop_when level: step {step}: {text}" if forget >= unseen else None
        defaults = {name: param.default for name, param in METHODS["masc"].params.items()}
        params: Any = config.params if config.method == "masc" else defaults

        def margin(logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
            return masc_margin(logits, targets, params["beta"], int(params["top_k"]))

        with evaluating(model):
            margins = row_values(model, passes, self.forget, config.max_tokens, device, margin)
        share = float((torch.cat(margins) > masc_tau(params["rho"])).float().mean())
        text = f"{share:.3f} of the forget tokens violate the margin, at most {config.stop_share:g} may"
        return f"--stop_when masc: step {step}: {text}" if share <= config.stop_share else None
