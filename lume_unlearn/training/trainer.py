"""transformers' Trainer with an unlearning loss; the training loop, checkpoints and logging stay Trainer's."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback

from lume_tasks.data.rows import Row
from lume_unlearn.checks import require_loaded
from lume_unlearn.data.contexts import Context, aligned, teacher_contexts
from lume_unlearn.data.documents import unseen_rows
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.examples import encoded_examples
from lume_unlearn.data.imitations import Persons, invented
from lume_unlearn.data.rows import RowsLike, as_rows, both_sides
from lume_unlearn.data.substitutes import variants
from lume_unlearn.errors import ConfigError, log
from lume_unlearn.methods.base import Method, Pair
from lume_unlearn.methods.registry import method_of
from lume_unlearn.methods.retain import retain_parts
from lume_unlearn.model.forward import Passes, evaluating, placed
from lume_unlearn.model.load import context_length, undo_autocast, without_autocast
from lume_unlearn.model.masters import drop_rounded
from lume_unlearn.training.arguments import UnlearningArguments, filled_in, is_adapted
from lume_unlearn.training.callbacks.level import LEVEL_TEXTS, Level
from lume_unlearn.training.callbacks.monitor import Monitor, advice
from lume_unlearn.training.callbacks.progress import Progress
from lume_unlearn.training.callbacks.record import Record
from lume_unlearn.training.callbacks.scores import BestScores
from lume_unlearn.training.callbacks.throughput import Throughput
from lume_unlearn.training.checkpoints import chosen_checkpoint, require_fresh
from lume_unlearn.training.distributed import processes, sharded
from lume_unlearn.training.failures import memory_advice
from lume_unlearn.training.loss import LossTerms
from lume_unlearn.training.merge import negate
from lume_unlearn.training.robust import Robust
from lume_unlearn.training.setup import (
    compute_reference,
    matching,
    optimizer_class,
    prepare_model,
    print_levels,
    ready_to_step,
    require_known_tokens,
    write_substitutes,
)
from lume_unlearn.training.steps import StepTrainer
from lume_unlearn.training.supported import has_teacher, require_supported, warn_of_used_adapter


class UnlearningTrainer(StepTrainer):
    """Unlearns forget rows: minimises ``forget_weight * L_forget + retain_weight * L_retain``.

    Both terms are divided by the tokens or rows of the whole optimiser step, over all micro-batches and processes, so
    neither the size of a micro-batch nor the number of processes changes the loss. Trainer sees each optimiser step as
    one batch, which ``max_tokens`` cuts into packed micro-batches.

    ``train()`` first computes what the method needs from the reference model, which is the model at that time; a second
    call computes it anew, unless it resumes from a checkpoint. Only the answers about invented persons, which `swap`
    imitates, are those of the model when the trainer was made.
    ``save_model()`` writes the model or adapter, the tokenizer and ``unlearning.json`` atomically to ``output_dir``.

    Args:
        model: causal language model of transformers, or a PEFT model; trained in place. Its attention is switched to
            packed rows if it supports them, and trained weights in half precision become float32 (see ``weights``).
        method: instance, class or name of a method.
        args: arguments; the method, the model and the machine set open ones (`filled_in`).
        forget: rows to forget (see `as_rows`).
        retain: rows to keep; needed unless the retain term is "none".
        processing_class: the tokenizer.
        alternatives: other answers to forget rows by the row's id, for `dpo` and `altpo`.
        substitutes: for the counterfactual teacher: texts and their possible substitutes. By default names, places,
            dates and numbers of the forget rows are replaced by those of other rows.
        unseen: texts never trained on; their loss is the target loss of `level`, and for texts that of `swap`.
        forgotten: forget rows of earlier requests, which the monitor measures.
        base: the model from which the target was fine-tuned. For `counterfactual` and `level` it is the teacher, and
            reads the rows unchanged; `swap` imitates it on texts, and on rows that name nothing to replace.
        eval_data: what ``eval_strategy`` scores (see `score`); by default the forget and retain rows.
        callbacks: called after those of this class.

    Raises:
        ConfigError: an option that cannot work, or a model that cannot do what the method needs.
        DataError: rows that are faulty or do not fit the model.
    """

    logs_advice = True
    """Whether `train` calls `log_advice` at its end; `run` calls it later."""

    def __init__(
        self,
        model: Any,
        method: Method | type[Method] | str,
        args: UnlearningArguments,
        forget: RowsLike,
        retain: RowsLike | None = None,
        *,
        processing_class: Any,
        alternatives: Mapping[str, Sequence[str]] | None = None,
        substitutes: Mapping[str, Sequence[str]] | None = None,
        unseen: Sequence[str | Row] | None = None,
        forgotten: RowsLike | None = None,
        base: Any = None,
        eval_data: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Make the model ready and encode the rows."""
        require_loaded(model)
        self._max_tokens_open, self.method = args.max_tokens is None, method_of(method)
        self.method.seed = args.seed  # type: ignore[misc]  # on this trainer's own copy
        args = filled_in(args, self.method, model)
        self.forget, self.retain = both_sides(forget, retain)
        self.substitutes, self.base, parts = substitutes, matching(base, model), self._retain_parts(args)
        given = {"retain": self.retain, "alternatives": alternatives, "substitutes": substitutes, "unseen": unseen}
        require_supported(self.method, args, model, parts, given | {"base": base})
        self.passes = prepare_model(model, self.method, args)
        self.terms = LossTerms(self.method, self.passes, parts)
        self.encode = Encoder(processing_class, args.loss_on, args.chat, args.max_length, context_length(model))
        texts = None if unseen is None else unseen_rows(unseen, (*self.forget, *self.retain))
        kept, persons = self.retain if parts else [], self._persons(model, texts or (), args.device)
        self.examples = encoded_examples(self.method, self.encode, self.forget, kept, alternatives, persons)
        earlier = [] if forgotten is None else as_rows(forgotten, "forgotten")
        self.monitor = Monitor(self, {"forget": self.forget, "retain": self.retain, "forgotten": earlier}, args)
        require_known_tokens(model, chain(*self.examples.sides.values(), *self.monitor.rows.values()))
        read = {"alternatives": alternatives, "substitutes": substitutes, "unseen": texts, "forgotten": earlier or None}
        self.record = Record(self, args, model, read)  # before arguments take the values that Trainer needs
        self.rows_per_step, self.phases = args.rows_per_step, self._phases(args)
        data = {"forget": self.forget, "retain": self.retain} if eval_data is None else eval_data
        own = self._callbacks(args, texts, data)
        args.gradient_accumulation_steps = 1  # Trainer sees a step as one batch
        args.num_train_epochs = 1 if self.phases else args.num_train_epochs  # all phases are one epoch
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.examples,
            eval_dataset=data,
            processing_class=processing_class,
            callbacks=[*own, *callbacks],
            optimizer_cls_and_kwargs=optimizer_class(args),
        )

    @cached_property
    def logit_passes(self) -> Passes:
        """Forward passes up to the logits, also if those of the method end at a layer."""
        return self.passes if self.passes.layer is None else Passes(self.model)

    def _retain_parts(self, args: UnlearningArguments) -> dict[str, float]:
        """Return the parts of the retain term and their weights; none if the retain weight is always 0."""
        assert args.retain_term is not None
        assert args.kl_weight is not None
        weighs = args.retain_weight or self.method.adapt or self.method.phases  # a weight that adapts may start at 0
        return retain_parts(args.retain_term, args.kl_weight) if weighs else {}

    def _phases(self, args: UnlearningArguments) -> list[list[list[Pair]]]:
        """Return the optimiser steps of each phase; none for methods that train on pairs, epoch by epoch."""
        if not self.method.phases:
            return []
        counts, epochs = (len(self.examples.forget), len(self.examples.retain)), int(args.num_train_epochs or 0)
        phases = list(self.method.phases(*counts, args.rows_per_step, epochs, args.seed))
        if args.max_steps > (steps := sum(map(len, phases))):
            name = self.method.name
            raise ConfigError(f"--max_steps {args.max_steps}: {name} has {steps} steps; raise --num_train_epochs")
        return phases

    def _persons(self, model: Any, unseen: Sequence[Row], device: torch.device) -> Persons | None:
        """Ask the reference model (the model without its adapter) about invented persons, if the method needs them."""
        if not self.method.needs.persons:
            return None
        controls, answers = (int(getattr(self.method, name)) for name in ("controls", "answers"))
        model.to(device)  # a model that is sharded later is still on the CPU
        by = nullcontext() if self.base is None else placed(self.base, device)
        with evaluating(model), model.disable_adapter() if is_adapted(model) else nullcontext(), by:
            given = (self.forget, self.retain, controls, answers, self.method.seed, self.base, unseen)
            found = invented(model, self.encode, *given, bool(self.method.imitation_loss) and self.passes.chunks)
        if processes() > 1:  # sampled on other GPUs, answers might differ
            found = broadcast_object_list([found])[0]
        if unseen and not found.texts:
            log.warning(
                "--unseen: not used; it is only for forget rows that are texts, name nobody and follow no template"
            )
        return found

    def _callbacks(
        self, args: UnlearningArguments, unseen: Sequence[Row] | None, eval_data: Any
    ) -> list[TrainerCallback]:
        """Set up the state that lasts from step to step, and return the callbacks."""
        self.resumed_from: Path | None = None
        self._start: dict[str, Tensor] = {}
        self._reference: Literal["missing", "ready", "used"] = "missing"
        self._step_retain = torch.zeros((), device=args.device)
        self.progress = Progress({"weight": float(args.retain_weight or 0)} if self.method.adapt else {}, args.device)
        self.throughput = Throughput()
        self.robust = None if args.robust == "none" else Robust(self, args)
        own: list[TrainerCallback] = [self.progress, self.throughput, self.record, self.monitor]
        own += [self.robust] if self.robust else []
        if unseen is not None and self.method.needs.teacher:
            texts = replace(self.encode, loss_on="text").some(unseen, LEVEL_TEXTS, args.seed)
            own.append(Level(self, texts))
        self.scores: BestScores | None = None
        if args.eval_strategy != "no":
            self.scores = BestScores(self, args, eval_data, args.metric_for_best_model)
            own.append(self.scores)
        return own

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train (see the class) and return Trainer's output.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the newest complete one in ``output_dir``. The
                model must have the weights with which the interrupted training began.
            **kwargs: passed on to Trainer.

        Raises:
            ConfigError: training diverged, the model collapsed under ``on_collapse="stop"``, a checkpoint cannot be
                written, or the one to resume from belongs to a training with other options or rows.
        """
        early = any(isinstance(one, EarlyStoppingCallback) for one in self.callback_handler.callbacks)
        if early and (self.scores is None or self.args.metric_for_best_model is None):
            needs = 'eval_strategy and metric_for_best_model, such as "epoch" and "lume_score.retain_knowledge"'
            raise ConfigError(f"callbacks: EarlyStoppingCallback compares scores; it needs {needs}")
        output = Path(str(self.args.output_dir))
        checkpoint = self.resumed_from = chosen_checkpoint(resume_from_checkpoint, output)
        if checkpoint is None:
            require_fresh(output, self.args.save_strategy)
            if self.logs_advice:
                warn_of_used_adapter(self.model, self.method, self.terms.retain_parts)
        else:
            recorded = self.record.resume(checkpoint)
            if self._max_tokens_open:  # free memory may differ: keep the micro-batches of before
                self.args.max_tokens = recorded.get("max_tokens", self.args.max_tokens)
                self.record.content["arguments"]["max_tokens"] = self.args.max_tokens
        # A training that resumes keeps the reference of the call that was interrupted.
        if self._reference == "missing" or (self._reference == "used" and checkpoint is None):
            self.run_reference()
        try:
            with memory_advice(self.args.max_tokens):
                result = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        finally:
            self._reference = "used"
            undo_autocast(self.model)
            drop_rounded(self.model)  # the model's weights are then those that the optimiser changed
            if self.method.negated:
                negate(self.accelerator.unwrap_model(self.model), self._start, getattr(self.method, "scale", 1.0))
        if self.method.negated:  # not after an error: a run that was stopped can continue
            self.monitor.check_result(self.model, self.state.global_step)
        if self.logs_advice:
            self.log_advice()
        return result

    def log_advice(self) -> None:
        """Warn if the training did little or lost too much, and say which option to try."""
        warning = advice(self.monitor.measured, self.method.negated, self.args.collapse_bound)
        if warning and self.is_world_process_zero():
            log.warning("%s", warning)

    def summary(self) -> str:
        """Return the optimiser steps and the change of NLL of forget and retain rows in one line."""
        return self.monitor.summary()

    def run_reference(self) -> None:
        """Compute what the method needs from the reference model; `train` calls this unless it was called just before.

        Raises:
            ConfigError: the model cannot do what the method needs, or an earlier `train` has sharded it.
        """
        if self._reference == "used" and sharded():
            raise ConfigError("train: with FSDP or DeepSpeed, the model stays sharded afterwards; make a new trainer")
        if self.method.negated and not is_adapted(self.model):  # before masters are rounded
            weights: dict[str, Tensor] = self.model.state_dict()  # type: ignore[union-attr]
            self._start = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        contexts = self._contexts() if has_teacher(self.method, self.base) else self._said()
        with memory_advice(self.args.max_tokens):
            compute_reference(self, contexts)
        ready_to_step(self.model, self.args, self.terms.reference)
        if self.method.needs.teacher and contexts and self.is_world_process_zero():
            print_levels(self.forget, self.examples)
        self._reference = "ready"

    def _contexts(self) -> dict[Tokens, list[Context]]:
        """Return the teacher's contexts of each forget row; write substitutes to ``substitutes.jsonl``."""
        if self.base is not None:
            return {row: [aligned(row, row)] for row in self.examples.forget}
        method: Any = self.method
        found = variants(self.forget, self.retain, method.contexts, self.args.seed, self.substitutes)
        if self.is_world_process_zero():
            write_substitutes(Path(str(self.args.output_dir)), self.forget, found)
        return teacher_contexts(
            self.forget, self.examples.forget, self.retain, found, self.encode, self.substitutes is None
        )

    def _said(self) -> dict[Tokens, list[Context]]:
        """Return the contexts of the answers to imitate; none if their predictions are not needed or not known."""
        if not self.method.imitation_loss:
            return {}
        if not self.passes.chunks:
            log.warning(
                "answers about invented persons are imitated as plain text, without the reference model's "
                "probabilities, since this model changes the logits after its output layer"
            )
            return {}
        return self.examples.contexts

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Score the model with the tasks of the harness, as ``eval_strategy`` does, and return the main scores.

        Args:
            eval_dataset: what to score instead of the training's ``eval_data`` (see `score`).
            ignore_keys: Trainer's; not used.
            metric_key_prefix: put before the name of each score.
        """
        scores = self.scores
        if scores is None or eval_dataset is not None:
            scores = BestScores(self, self.args, self.eval_dataset if eval_dataset is None else eval_dataset)
        with without_autocast(self.model):
            found = scores.evaluate(self.model, self.state.global_step)
        metrics = {f"{metric_key_prefix}_{name.replace(' ', '_')}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
