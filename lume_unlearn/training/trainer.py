"""transformers' Trainer with an unlearning loss; the training loop, checkpoints and logging stay Trainer's."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from lume_unlearn.data import schedule
from lume_unlearn.data.contexts import Context
from lume_unlearn.data.documents import text_rows
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.examples import encoded_examples
from lume_unlearn.data.rows import RowsLike, as_rows, both_sides
from lume_unlearn.data.schedule import Steps
from lume_unlearn.methods.base import Method, Pair, Side
from lume_unlearn.methods.registry import method_of
from lume_unlearn.methods.retain import part_needs_reference, retain_parts
from lume_unlearn.model.forward import Passes
from lume_unlearn.model.load import context_length
from lume_unlearn.model.masters import drop_rounded, step_masters
from lume_unlearn.training.arguments import UnlearningArguments, filled_in, is_adapted
from lume_unlearn.training.callbacks.level import LEVEL_TEXTS, Level
from lume_unlearn.training.callbacks.monitor import SAMPLE, Monitor, advice
from lume_unlearn.training.callbacks.progress import Progress
from lume_unlearn.training.callbacks.record import Record
from lume_unlearn.training.callbacks.scores import BestScores
from lume_unlearn.training.callbacks.throughput import Throughput
from lume_unlearn.training.checkpoints import chosen_checkpoint
from lume_unlearn.training.failures import memory_advice, require_finite
from lume_unlearn.training.loss import LossTerms
from lume_unlearn.training.merge import negate
from lume_unlearn.training.optimizer import FreshOptimizer, optimizer_class, phase_factor, warmed_up
from lume_unlearn.training.robust import Robust
from lume_unlearn.training.saving import SavingTrainer
from lume_unlearn.training.setup import prepare_model, require_known_tokens, run_reference
from lume_unlearn.training.supported import has_teacher, require_supported
from lume_unlearn.training.teaching import print_level, teacher_inputs, write_substitutes

_log = logging.getLogger("lume_unlearn")


class UnlearningTrainer(SavingTrainer):
    """Unlearns forget rows: minimises ``forget_weight * L_forget + retain_weight * L_retain``.

    Both terms are divided by the tokens or rows of the whole optimiser step, over all micro-batches and processes, so
    neither the size of a micro-batch nor the number of processes changes the loss. Trainer sees each optimiser step as
    one batch, which ``max_tokens`` cuts into packed micro-batches.

    ``train()`` first computes what the method needs of the reference model, the model as it is then. ``save_model()``
    writes the model or adapter, the tokenizer and ``unlearning.json`` to ``output_dir``, each file whole or not at all.
    """

    args: UnlearningArguments

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
        unseen: Sequence[str] | None = None,
        forgotten: RowsLike | None = None,
        eval_data: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Make the model ready and encode the rows.

        Args:
            model: causal language model of transformers, or a PEFT model; trained in place. Its attention is switched
                to packed rows where it supports them, and trained weights in half precision become float32.
            method: instance, class or name of a method.
            args: arguments; what they leave open, the method, the model and the machine decide (`filled_in`).
            forget: rows to forget (see `as_rows`).
            retain: rows to keep; needed unless the retain term is "none".
            processing_class: the tokenizer.
            alternatives: other answers to forget rows by the row's id, for `dpo` and `altpo`.
            substitutes: for the counterfactual teacher: texts, and what may take their place. By default names, places,
                dates and numbers of the forget rows, and those of other rows.
            unseen: texts never trained on; their loss is the target loss of `level`.
            forgotten: forget rows of earlier requests, which the monitor measures.
            eval_data: what ``eval_strategy`` scores (see `score`); by default the forget and retain rows.
            callbacks: called after those of this class.

        Raises:
            ConfigError: an option that cannot work, or a model that cannot do what the method needs.
            DataError: rows that are faulty or do not fit the model.
        """
        self.method = method_of(method)
        self.method.seed = args.seed
        self._max_tokens_open = args.max_tokens is None
        args = filled_in(args, self.method, model)
        self.forget, self.retain = both_sides(forget, retain)
        weighs = args.retain_weight or self.method.adapt or self.method.phases  # a weight that adapts may start at 0
        parts = retain_parts(args.retain_term, args.kl_weight) if weighs else {}
        given = {"retain": self.retain, "alternatives": alternatives, "substitutes": substitutes, "unseen": unseen}
        require_supported(self.method, args, is_adapted(model), bool(parts), given)
        self.passes = prepare_model(model, self.method, args)
        self.logit_passes = self.passes if self.passes.layer is None else Passes(model)
        self.terms = LossTerms(self.method, self.passes, parts, bool(args.bf16))
        encode = Encoder(processing_class, args.loss_on, args.chat, args.max_length, context_length(model))
        kept = self.retain if parts else []
        self.examples = encoded_examples(self.method, encode, self.forget, kept, alternatives, args.seed)
        measured = {"forget": self.forget, "retain": self.retain, "forgotten": as_rows(forgotten or [], "forgotten")}
        monitored = {side: encode.some(rows, SAMPLE, args.seed) for side, rows in measured.items()}
        examples = self.examples
        require_known_tokens(model, chain(examples.forget, examples.retain, examples.alternative, *monitored.values()))
        self.encode, self.substitutes = encode, substitutes
        self.monitor = Monitor(self, monitored)
        self._prepared = False
        self._start: dict[str, Tensor] = {}
        self._step_retain = torch.zeros((), device=args.device)
        self.record = Record(self, args, model)
        self.phases = self._phases(args)
        self.rows_per_step = args.rows_per_step
        args.gradient_accumulation_steps = 1  # Trainer sees a whole step as one batch
        best_metric, args.metric_for_best_model = args.metric_for_best_model, None  # Trainer's needs a value each time
        own = self._callbacks(args, unseen)
        self.scores: BestScores | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.examples,
            eval_dataset=eval_data or {"forget": self.forget, "retain": self.retain},
            processing_class=processing_class,
            callbacks=[*own, *callbacks],
            optimizer_cls_and_kwargs=optimizer_class(args),
        )
        if args.eval_strategy != "no":
            self.scores = BestScores(self, self.eval_dataset, best_metric)
            self.add_callback(self.scores)

    def _phases(self, args: UnlearningArguments) -> list[list[list[Pair]]]:
        """Return the optimiser steps of each phase; none for methods that train on pairs, epoch by epoch."""
        if not self.method.phases:
            return []
        assert args.num_train_epochs is not None
        counts, epochs = (len(self.examples.forget), len(self.examples.retain)), int(args.num_train_epochs)
        args.num_train_epochs = 1  # of Trainer's: all phases
        phases: list[list[list[Pair]]] = self.method.phases(*counts, args.rows_per_step, epochs, args.seed)
        return phases

    def _callbacks(self, args: UnlearningArguments, unseen: Sequence[str] | None) -> list[TrainerCallback]:
        self.progress = Progress({"weight": args.retain_weight} if self.method.adapt else {}, args.device)
        self.throughput = Throughput()
        own: list[TrainerCallback] = [self.progress, self.throughput, self.record, self.monitor]
        if self.phases:
            own.append(FreshOptimizer([len(phase) for phase in self.phases]))
        self.robust = None if args.robust == "none" else Robust(self)
        own += [self.robust] if self.robust else []
        if unseen is not None:
            texts = replace(self.encode, loss_on="text").some(text_rows(unseen), LEVEL_TEXTS, args.seed)
            own.append(Level(self, texts))
        return own

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train (see the class) and return Trainer's output.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the newest complete one in ``output_dir``. The
                model must be as it was when the interrupted training began.
            **kwargs: passed on to Trainer.

        Raises:
            ConfigError: training diverged, the model collapsed under ``on_collapse="stop"``, a checkpoint cannot be
                written, or the one to resume from belongs to a training with other options or rows.
        """
        checkpoint = chosen_checkpoint(resume_from_checkpoint, Path(str(self.args.output_dir)))
        if checkpoint is not None:
            recorded = self.record.resume(checkpoint)
            if self._max_tokens_open:  # the free memory may be another: micro-batches stay as they were
                self.args.max_tokens = recorded.get("max_tokens", self.args.max_tokens)
        if not self._prepared:
            self.run_reference()
        with memory_advice(self.args.max_tokens):
            result = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        drop_rounded(self.model)  # the model's weights are then those that the optimiser changed
        if self.method.negated:
            negate(self.accelerator.unwrap_model(self.model), self._start, getattr(self.method, "scale", 1.0))
            self.monitor.check_result(self.model, self.state.global_step)
        warning = advice(self.monitor.measured, self.method.negated)
        if warning and self.is_world_process_zero():
            _log.warning("%s", warning)
        return result

    def summary(self) -> str:
        """Return the optimiser steps and the change of NLL of forget and retain rows in one line."""
        return self.monitor.summary()

    def run_reference(self) -> None:
        """Compute what the method needs of the model as it is before the first step; `train` does it unless done."""
        contexts = self._contexts() if has_teacher(self.method) else {}
        compared = any(map(part_needs_reference, self.terms.retain_parts)) or self.method.needs.reference_logits
        with memory_advice(self.args.max_tokens):
            run_reference(self.model, self.args, self.terms, self.examples, contexts, compared)
        if contexts and self.is_world_process_zero():
            print_level(getattr(self.method, "window", 0), self.examples, contexts)
        if self.method.negated and not is_adapted(self.model):
            self._start = {name: weight.detach().cpu().clone() for name, weight in self.model.state_dict().items()}
        self._prepared = True

    def _contexts(self) -> dict[Tokens, list[Context]]:
        """Return what the counterfactual teacher reads of each forget row; write it to ``substitutes.jsonl``."""
        rows, tokens, seed = (self.forget, self.retain), self.examples.forget, self.args.seed
        variants, contexts = teacher_inputs(self.method, self.encode, *rows, tokens, self.substitutes, seed)
        if self.is_world_process_zero():
            write_substitutes(Path(str(self.args.output_dir)), self.forget, variants)
        return contexts

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this process's micro-batches of each step.

        accelerate's own sharding would repeat rows where their number is no multiple of the processes.
        """
        args, examples = self.args, self.examples
        assert args.max_tokens is not None

        def steps() -> list[list[Pair]]:
            if self.phases:
                return [step for phase in self.phases for step in phase]
            epoch = int(self.state.epoch or 0)
            return schedule.paired(len(examples.forget), len(examples.retain), self.rows_per_step, args.seed, epoch)

        batches = Steps(
            steps,
            self.steps_per_epoch,
            examples.lengths,
            args.max_tokens,
            padded=not self.passes.packs,
            process=args.process_index,
            processes=args.world_size,
        )
        return DataLoader(examples, batch_sampler=batches, collate_fn=lambda steps: steps[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch over the forget rows, or of all phases."""
        if self.phases:
            return sum(len(phase) for phase in self.phases)
        return -(-len(self.examples.forget) // self.rows_per_step)

    def create_optimizer(self, model: Any = None) -> Any:
        """Return Trainer's optimiser, of the float32 masters with ``weights="masters"``."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.args.weights == "masters":
            step_masters(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return Trainer's schedule with a warm-up that starts above 0, or one that falls to 0 in each phase."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        optimizer = optimizer or self.optimizer
        if self.phases:
            factor = phase_factor([len(phase) for phase in self.phases])
        else:
            own: Any = super().create_scheduler(num_training_steps, optimizer)
            if not isinstance(own, LambdaLR):
                return own
            factor = warmed_up(own.lr_lambdas[0], self.args.get_warmup_steps(num_training_steps))
        self.lr_scheduler = LambdaLR(optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward passes of one optimiser step's micro-batches; return the step's loss.

        Raises:
            Diverged: the loss or a gradient is not finite; the weights are still those from before the step.
        """
        model.train()
        total = self.robust.add_gradients(model, inputs) if self.robust else self.add_gradients(model, inputs)
        step = self.state.global_step + 1
        require_finite(model, total, step, inputs["ids"], float(self.args.learning_rate or 0))
        self.throughput.tokens += inputs["input_ids"].numel()
        self.progress.steps += 1
        self.progress.add({"loss": total / self.accelerator.num_processes})
        if self.method.adapt:
            loss = self.accelerator.reduce(self._step_retain, "sum").item()
            self._step_retain = torch.zeros((), device=self.args.device)
            epochs = step / self.steps_per_epoch  # completed after this step
            self.progress.values = self.method.adapt(self.progress.values, loss, epochs)
        return total

    def add_gradients(
        self, model: nn.Module, inputs: dict[str, Any], sides: Sequence[Side] = ("forget", "retain"), log: bool = True
    ) -> Tensor:
        """Add the gradients of one optimiser step's weighted terms to the weights' gradients.

        Args:
            model: as accelerate wrapped it.
            inputs: an item of `Examples`.
            sides: the terms.
            log: add the terms to the loss history.

        Returns:
            The weighted sum of the terms: this process's share, times the number of processes.
        """
        total = torch.zeros((), device=self.args.device)
        unwrapped, packs = self.accelerator.unwrap_model(model), inputs["packs"]
        weights = {"forget": float(self.args.forget_weight or 0), "retain": self.retain_weight}
        for number, batch in enumerate(packs):
            with self._exchange(model, number == len(packs) - 1):
                with self.compute_loss_context_manager():
                    pack, state = batch.to(self.args.device), self.progress.values
                    terms = self.terms(model, unwrapped, pack, inputs["counts"], state, sides)
                    if log:
                        self.progress.add(terms)
                    if "retain" in terms:
                        self._step_retain += terms["retain"].detach()
                    loss = torch.stack([weights[side] * term for side, term in terms.items()]).sum()
                loss = loss * self.accelerator.num_processes  # gradients are averaged over them, terms are shares
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    @property
    def retain_weight(self) -> float:
        """The retain weight of the current step, which the method may have changed."""
        return self.progress.values.get("weight", float(self.args.retain_weight or 0))

    def _exchange(self, model: nn.Module, last: bool) -> Any:
        """Return a context in which DDP exchanges gradients after the step's last micro-batch only.

        FSDP and DeepSpeed, whose processes hold parts of the gradients, exchange them after each micro-batch.
        """
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed takes the step when this is set
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add each term's mean over the optimiser steps since the last entry, over all processes.

        This replaces Trainer's own mean loss, which forgets the steps before a run was resumed.
        """
        if "loss" in logs:
            progress = self.progress
            sums = self.accelerator.reduce(torch.stack(list(progress.sums.values())), "sum").tolist()
            for name, value in zip(progress.sums, sums, strict=True):
                logs[name if name == "loss" else f"{name}_loss"] = value / progress.steps
            if "weight" in progress.values:
                logs["retain_weight"] = progress.values["weight"]
            progress.sums, progress.steps = {}, 0
        super().log(logs, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Score the model with the tasks of the harness, as ``eval_strategy`` does, and return the main scores.

        Args:
            eval_dataset: what to score instead of the training's ``eval_data`` (see `score`).
            ignore_keys: Trainer's; not used.
            metric_key_prefix: put before the name of each score.
        """
        scores = self.scores
        if scores is None or eval_dataset is not None:
            scores = BestScores(self, eval_dataset or self.eval_dataset, None)
        found = scores.evaluate(self.model, self.state.global_step)
        metrics = {f"{metric_key_prefix}_{name.replace(' ', '_')}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
