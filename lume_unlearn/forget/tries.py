"""Tries: training runs with different settings, judged while they run; finished ones survive an interruption."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_callback import ExportableState

from lume_tasks.data.rows import Row
from lume_tasks.data.source import Data
from lume_unlearn.checks import restored
from lume_unlearn.errors import Diverged
from lume_unlearn.files import PREFIX, write_text, writing
from lume_unlearn.forget.settings import Setting, next_setting
from lume_unlearn.forget.signals import Judge, Signals
from lume_unlearn.methods.base import Method
from lume_unlearn.model.load import without_autocast
from lume_unlearn.model.weights import copied_weights, set_weights
from lume_unlearn.scoring.score import without_messages
from lume_unlearn.training.arguments import UnlearningArguments
from lume_unlearn.training.callbacks.progress import saved_attributes
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.trainer import UnlearningTrainer

RESULT, WEIGHTS = "try.json", "best.safetensors"
JUDGED = 2
"""Number of judgements of a try: in the middle and at the end."""
SHOWN = 4
"""Printed lines, and checkpoints, of a try: after each quarter of its steps."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Try:
    """One training run: its setting, and the signals of the model."""

    number: int
    setting: Setting
    judged: dict[int, Signals] = field(default_factory=dict)
    """Optimiser step to the signals after it; empty if the training diverged before the first."""
    seconds: float = 0.0

    @property
    def cut(self) -> bool:
        """Return whether the training ended before its last step because the model collapsed."""
        return max(self.judged, default=self.setting.steps) < self.setting.steps

    @property
    def best(self) -> Signals | None:
        """Return the best signals; None if there are none."""
        return max(self.judged.values(), key=lambda one: one.order, default=None)


@dataclass(frozen=True)
class Tries:
    """Inputs that all tries of a request share."""

    model: Any
    """The target, from `trainable`: with a new adapter, or with the weights that are trained."""
    tokenizer: Any
    data: Data
    judge: Judge
    method: Method
    folder: Path
    """Folder that keeps the tries."""
    seed: int
    say: Say
    base: Any = None
    """Base model of the target, if it still exists."""
    unseen: Sequence[Row] | None = None
    """Texts that the target never saw."""
    rejected: int = 0
    """Number of tries of an earlier call whose verdict was not good."""

    def carried_out(self, first: Setting, most: int, goes_on: Callable[[float], bool]) -> list[Try]:
        """Train with one setting after the other until a model is good, and return the tries.

        Args:
            first: setting of the first try.
            most: most tries.
            goes_on: returns whether there is time for another try that takes this many seconds.
        """
        start = copied_weights(self.model)
        done: list[Try] = []
        setting = first
        while len(done) < most and (not done or goes_on(done[-1].seconds)):
            number = len(done) + 1
            found = self._kept(number)
            if found is None:
                source = load_file(self.folder / str(number - 1) / WEIGHTS) if setting.continued else start
                set_weights(self.model, source)
                found = self._trained(number, setting)
            done.append(found)
            if found.best is not None and found.best.good and number > self.rejected:
                break
            setting, change = next_setting(setting, found.best, found.cut)
            self.say(f"try {number}: {change}")
        return done

    def load_best(self, tries: Sequence[Try]) -> Try | None:
        """Load the best weights of all tries into the model, and return the try; None if all diverged.

        Good tries that no verdict has rejected come first.
        """
        judged = [one for one in tries if one.best is not None]
        judged = [one for one in judged if one.number > self.rejected and one.best and one.best.good] or judged
        if not judged:
            return None
        best = max(judged, key=lambda one: one.best.order if one.best else ())
        set_weights(self.model, load_file(self.folder / str(best.number) / WEIGHTS))
        return best

    def _kept(self, number: int) -> Try | None:
        """Return a finished try of an interrupted request, if there is one."""
        path = self.folder / str(number) / RESULT
        if not path.is_file():
            return None
        found: Try = restored(Try, json.loads(path.read_text(encoding="utf-8")))
        return found

    def _trained(self, number: int, setting: Setting) -> Try:
        """Run one try, or continue it from its last checkpoint."""
        folder, started = self.folder / str(number), time.monotonic()
        checkpoints = whole_checkpoints(folder)
        watch = Watch(self.judge, folder, setting, self.say)
        set_seed(self.seed + number)
        arguments = UnlearningArguments(
            output_dir=str(folder),
            max_steps=setting.steps,
            learning_rate=setting.learning_rate,
            retain_weight=setting.retain_weight,
            chat=self.judge.asking["chat"],
            on_collapse="rollback",
            save_strategy="steps",
            save_steps=max(1, setting.steps // SHOWN),
            save_total_limit=1,
            seed=self.seed + number,
            use_cpu=self.model.device.type == "cpu",
            disable_tqdm=True,
        )
        sides: dict[str, Any] = {**self.data.rows, "processing_class": self.tokenizer, "base": self.base}
        trainer = UnlearningTrainer(self.model, self.method, arguments, **sides, unseen=self.unseen, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.logs_advice = False  # `next_setting` says what to change
        try:
            with without_messages("lume_unlearn", "--model hardly knows"):  # a continued try starts from such a model
                trainer.train(resume_from_checkpoint=str(checkpoints[0]) if checkpoints else None)
        except Diverged as error:
            self.say(f"try {number}: {error}")
        found = Try(number, setting, watch.judged, seconds=time.monotonic() - started)
        with writing(folder):
            write_text(folder / RESULT, json.dumps(asdict(found), indent=1) + "\n")
        for checkpoint in folder.glob(f"{PREFIX}*"):
            shutil.rmtree(checkpoint, ignore_errors=True)
        return found


def due(step: int, steps: int, times: int) -> bool:
    """Return whether a step is the last of one of ``times`` equal parts of all steps."""
    return step in {steps * time // times for time in range(1, times + 1)}


class Watch(TrainerCallback, ExportableState):
    """Judges the model in the middle of a try and at its end, and keeps the best weights."""

    def __init__(self, judge: Judge, folder: Path, setting: Setting, say: Say) -> None:
        """Open the progress bar; ``folder``: folder of the try, named after its number."""
        self.judge, self.folder, self.setting, self.say = judge, folder, setting, say
        self.judged: dict[int, Signals] = {}
        self.bar = tqdm(desc=f"try {folder.name}", unit="step", disable=None, leave=False)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"judged": {step: asdict(one) for step, one in self.judged.items()}}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore what the checkpoint kept."""
        kept: Mapping[str, Any] | None = saved_attributes(self, state)
        if kept is not None:
            self.judged = restored(dict[int, Signals], kept["judged"])
        self.bar.reset(total=state.max_steps)
        self.bar.update(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.bar.close()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge when it is `due`, or when the collapse monitor ended the training."""
        self.bar.update()
        step, steps = state.global_step, self.setting.steps
        where = f"try {self.folder.name} ({self.setting.line()}), step {step} of {steps}"
        if not (due(step, steps, JUDGED) or control.should_training_stop):
            if due(step, steps, SHOWN):
                self.say(where)
            return
        with without_autocast(model):  # the target was judged without it, and generation does not have it
            found = self.judge.signals(model)
        if all(found.order > one.order for one in self.judged.values()):
            with writing(self.folder):
                save_file(copied_weights(model), self.folder / WEIGHTS)
        self.judged[step] = found
        self.bar.set_postfix_str(f"known {found.known}/{found.rows}, kept {found.kept}/{found.retain}")
        self.say(f"{where}: {found.line()}")
