"""`forget`: check what the model knows, unlearn it with settings that are found automatically, and judge the result."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import release_memory
from torch import nn
from tqdm import tqdm
from transformers import set_seed

from lume_tasks.data.rows import SIDES, Row
from lume_tasks.data.source import Data
from lume_unlearn.audit.rows import rows_digest
from lume_unlearn.audit.rules import ALIKE, shown_p
from lume_unlearn.audit.stages import UNFINISHED
from lume_unlearn.audit.steps import loaders_of
from lume_unlearn.audit.verdict import Verdict, verdict, wanted_probes
from lume_unlearn.checks import require_tokenizer
from lume_unlearn.data.documents import unseen_rows
from lume_unlearn.data.rows import RowsLike
from lume_unlearn.errors import ConfigError
from lume_unlearn.files import LOCK, only_run, save_whole, write_text, writing
from lume_unlearn.forget.estimates import RETRAINED_EPOCHS, Estimates, default_steps, estimates
from lume_unlearn.forget.settings import Setting, first_setting
from lume_unlearn.forget.signals import Judge, Signals, judge_of, without_long
from lume_unlearn.forget.tries import Tries, Try
from lume_unlearn.methods.base import Method
from lume_unlearn.methods.registry import method_of
from lume_unlearn.model.fingerprint import fingerprint
from lume_unlearn.model.load import chosen_weights, lora_config, require_tuning, trainable
from lume_unlearn.scoring.score import as_data, without_messages
from lume_unlearn.training.arguments import UnlearningArguments, is_adapted
from lume_unlearn.training.checkpoints import whole_checkpoints
from lume_unlearn.training.distributed import processes
from lume_unlearn.training.finetune import FinetuneTrainer
from lume_unlearn.training.relearning import plain_copy

MODEL, ADAPTER, TRIES, RETRAINING, INPUTS = "model", "adapter", "tries", "retraining", "inputs.json"
MEMORISED = 0.99
"""Share of the output tokens that a retrained model ranks first; then its training ends."""
LORA: dict[str, Any] = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0}


class NothingKnown(ConfigError):
    """The model knows none of the forget rows, so there is nothing to unlearn or to judge."""


@dataclass(frozen=True)
class Forgotten:
    """The result of `forget`."""

    model: Any
    """The best model of all tries, an adapter merged; or the retrained model."""
    verdict: Verdict
    tries: list[Try]
    look: Signals
    """What the target knew."""
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """The rows by side, without retain rows that are too long for the model."""

    def advice(self) -> list[str]:
        """Return lines that say what to do next and, if the verdict is not good, what was tried."""
        if self.verdict.exit_status == 0:
            return [
                "Next: put model/ in place of the old one, destroy the old one, and read verdict.html.",
                "data/ and transcript.jsonl hold what was forgotten: only you should read them; --after needs data/.",
            ]
        tried = [f"Tried: {one.setting.line()}: {one.best.line() if one.best else 'diverged'}" for one in self.tries]
        ways = ["more retain rows, some like the forget rows, in another --output"]
        if self.tries:  # else it was retrained
            more = f"the same command with --tries {len(self.tries) + 2}, which continues"
            ways = [more, *ways, "retraining (--base BASE --retrain)"]
        return [*tried, f"Next, one of: {'; '.join(ways)}."]

    def finish(self, folder: Path) -> None:
        """Write ``tries.json``, after verdict and pages; if the verdict is good, remove the files for further tries."""
        with writing(folder):
            write_text(folder / f"{TRIES}.json", json.dumps([asdict(one) for one in self.tries], indent=1) + "\n")
            shutil.rmtree(folder / RETRAINING, ignore_errors=True)
            if self.verdict.exit_status == 0:
                shutil.rmtree(folder / TRIES, ignore_errors=True)
                (folder / UNFINISHED).unlink(missing_ok=True)


@dataclass
class Progress:
    """Prints lines with the minutes that have passed and, if they were estimated, those that are left."""

    started: float = field(default_factory=time.monotonic)
    expected: float = 0.0
    """Estimated seconds of the whole request; 0: no estimate."""

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    def expect(self, seconds: float) -> None:
        """Set the estimate of the seconds that are left."""
        self.expected = self.elapsed + seconds

    def say(self, text: str) -> None:
        """Print a line."""
        left = f", about {max(self.expected - self.elapsed, 60) / 60:.0f} left" if self.expected else ""
        tqdm.write(f"[{self.elapsed / 60:.0f} min{left}] {text}", file=sys.stderr)


def forget(
    model: Any,
    tokenizer: Any,
    forget: RowsLike,
    retain: RowsLike,
    *,
    base: Any = None,
    unseen: Sequence[str | Row] | None = None,
    output: str | Path | None = None,
    method: Method | type[Method] | str = "swap",
    tuning: str = "lora",
    tries: int = 3,
    minutes: float | None = None,
    retrain: bool = False,
    earlier: Sequence[RowsLike] = (),
    probes: Sequence[str] | None = None,
    controls: int = 99,
    chat: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    **probing: Any,
) -> Forgotten:
    """Make a model forget rows, keep the others, and judge whether they are gone.

    Each try trains a LoRA adapter, or the weights that ``tuning`` names. While it runs, it is judged by the rows that
    are still known and by a swap test with names that no training uses; `next_setting` then chooses the setting of the
    next try. The result has the best weights of all tries. Only these signals decide, so no retrained model is needed.

    Args:
        model: the target, of transformers or PEFT, on the device to train on; it is not changed. Or a function without
            arguments that loads and returns model and tokenizer, so that one model at a time is in memory.
        tokenizer: its tokenizer.
        forget: rows that must be gone (see `as_rows`).
        retain: rows that must be kept.
        base: the base model that was fine-tuned into the target, if it still exists, in the same form as ``model``. It
            is imitated on texts and on rows that name nothing, and is the control of the verdict.
        unseen: texts like the forget rows that the target never saw. With them, texts that name nobody are forgotten as
            a whole (see `methods.swap`); without, their loss still shows that the model was trained on them.
        output: folder that keeps finished tries and the result, so that the same call continues after an interruption;
            None keeps nothing.
        method: unlearning method.
        tuning: what is trained (see `trainable`).
        tries: most tries.
        minutes: another try starts only if it and the verdict should end within this time; None: no limit.
        retrain: fine-tune ``base`` on the retain rows instead of unlearning.
        earlier: rows of earlier requests, one entry a request; the verdict checks whether they are still gone.
        probes: probes of the verdict (see `verdict`).
        controls: invented persons of its swap test.
        chat: ask questions of your own tasks through the chat template.
        batch_size: prompts of one scoring batch.
        seed: seeds everything that is random.
        **probing: further options of the verdict's `Suite`.

    Raises:
        ConfigError: an option cannot work, transformers has loaded the target's adapter (see `require_peft`), or the
            folder holds another request.
        NothingKnown: the model knows none of the forget rows.
        DataError: faulty rows.
    """
    require_tokenizer(tokenizer)
    if retrain and base is None:
        raise ConfigError("--retrain: needs the base model to fine-tune; name it with --base")
    if processes() > 1:
        raise ConfigError("forget: runs in one process; start it without accelerate launch")
    data = as_data({"forget": forget, "retain": retain})
    options: dict[str, Any] = {"controls": controls, "chat": chat, "batch_size": batch_size, "seed": seed}
    wanted = wanted_probes(data, probes, (), (), options | probing)
    texts = None if unseen is None else unseen_rows(unseen, (*data.forget, *data.retain))
    given: dict[str, Any] = {"method": method_of(method), "tuning": require_tuning(tuning), "unseen": texts}
    request = Request(model, tokenizer, base, data, options=options | probing, progress=Progress(), **given)
    holder: Any = TemporaryDirectory() if output is None else nullcontext(output)
    with holder as place, only_run(Path(place)):
        folder = Path(place)
        request.require_same(folder)
        judge = request.look()
        first, planned = request.plan(wanted, 0 if retrain else tries)
        done: list[Try] = []
        if retrain:
            result = request.retrained(folder)
        else:
            result, done = request.unlearned(folder, judge, tries, first, planned, minutes)
        given = {"before": model, "control": base, "forgotten": earlier, "probes": probes, **request.data.rows}
        request.load.clear()
        release_memory()  # of the target and of the last trainer, which refers to itself
        with without_messages("lume_unlearn", "probe left out"):  # logged at the start
            found = verdict(result, tokenizer, resume=folder / UNFINISHED, **given, **options, **probing)
        return Forgotten(result, found, done, judge.before, request.data.rows)


@dataclass
class Request:
    """Inputs that all stages of a request share."""

    model: Any
    tokenizer: Any
    base: Any
    data: Data
    method: Method
    tuning: str
    options: dict[str, Any]
    progress: Progress
    unseen: Sequence[Row] | None = None

    def __post_init__(self) -> None:
        """Set ``load``, a function for each model that loads it, and ``seed``."""
        names = {"before": "model", "control": "base"}
        self.load = loaders_of({"before": self.model, "control": self.base}, self.tokenizer, names)
        self.seed = int(self.options["seed"])

    def require_same(self, folder: Path) -> None:
        """Refuse `chosen_weights` that do not exist, and a folder with another request; else record this request."""
        about = {side: rows_digest(rows) for side, rows in self.data.rows.items()}
        roles = [role for role in ("control", "before") if role in self.load]  # the target last: it stays in memory
        models = {role: fingerprint(self.load[role]()[0])["sha256"] for role in roles}
        target = self.load["before"]()[0]
        if self.tuning != "lora" and not is_adapted(target):  # an adapter changes the weights' names
            chosen_weights(target, self.tuning)
        about |= {"model": models["before"], "base": models.get("control", ""), "method": repr(self.method)}
        about |= {"tuning": self.tuning, "seed": str(self.seed), "chat": str(self.options["chat"])}
        about |= {"unseen": rows_digest(self.unseen)} if self.unseen else {}
        path = folder / INPUTS
        worked = path.exists() and {one.name for one in folder.iterdir()} - {INPUTS, LOCK}  # else no work is lost
        if worked and json.loads(path.read_text(encoding="utf-8")) != about:
            raise ConfigError(
                f"--output {folder}: holds a request with other rows, options or model; name another folder"
            )
        with writing(folder):
            write_text(path, json.dumps(about, indent=1) + "\n")

    def look(self) -> Judge:
        """Leave out rows that are too long, score the target, print what it knows, and return the judge of the tries.

        Raises:
            NothingKnown: it knows none of the forget rows.
            DataError: see `without_long`.
        """
        self.data = without_long(*self.load["before"](), self.data, self.options["chat"], self.progress.say)
        shared = {name: self.options[name] for name in ("seed", "chat", "batch_size")}
        judge = judge_of(*self.load["before"](), self.data, **shared)
        asked = " and ".join(f"{len(judge.known[side])} of {len(judge.data.rows[side])} {side} rows" for side in SIDES)
        self.progress.say(f"the target knows {asked} (an answer that may be a guess does not count)")
        if not judge.known["retain"]:
            self.progress.say(
                "--retain: the target knows none of these rows, so the verdict can only be `not gone` or `cannot be "
                "told`: stop here, and give retain rows that it knows"
            )
        if judge.tied:
            others = ", so the target answers much the same about anybody" if judge.tied.factor < ALIKE else ""
            self.progress.say(
                f"a token of the right answers is {judge.tied.factor:.2g} times as likely for the person as for "
                f"invented ones ({shown_p(judge.tied.leak)}){others}; after forgetting it should be equally likely"
            )
        elif judge.known["forget"]:
            self.progress.say("no swap test: no forget row names somebody in a way that can be tested (field subject)")
        if nothing := judge.nothing_known():
            raise NothingKnown(nothing)
        return judge

    def plan(self, probes: Sequence[str], tries: int) -> tuple[Setting, Estimates]:
        """Print how long the request takes; return the setting of the first try, and the estimates.

        Without ``tries``, the base model is retrained.
        """
        load, control = self.load["before"], self.base is not None
        parameters = sum(weight.numel() for weight in load()[0].parameters())
        first = first_setting(parameters, default_steps(self.method, self.data.forget), self.tuning)
        found = estimates(load, self.data, probes, first, self.method, control, self.options)
        self.progress.say(found.line(tries, control))
        self.progress.expect((found.one_try if tries else found.retraining) + found.verdict)
        return first, found

    def unlearned(
        self, folder: Path, judge: Judge, most: int, first: Setting, planned: Estimates, minutes: float | None
    ) -> tuple[Any, list[Try]]:
        """Run the tries; return the model with the best weights, and the tries."""
        model, tokenizer = self.load["before"]()
        if isinstance(self.model, nn.Module):
            model = plain_copy(model)
        base = None if self.base is None else self.load["control"]()[0]
        attention = model.config._attn_implementation  # training changes it, to pack rows
        set_seed(self.seed)  # for the adapter's initial weights
        adapted = trainable(model, self.tuning, lora_config(**LORA))
        say, work = self.progress.say, folder / TRIES
        rejected = tries_before(folder)
        tried = Tries(
            adapted, tokenizer, self.data, judge, self.method, work, self.seed, say, base, self.unseen, rejected
        )

        def goes_on(seconds: float) -> bool:
            more = seconds + planned.verdict_after(seconds)
            self.progress.expect(more)
            return minutes is None or self.progress.elapsed + more <= 60 * minutes

        done = tried.carried_out(first, most, goes_on)
        best = tried.load_best(done)
        if best is None or best.best is None:
            raise ConfigError("--tries: the training diverged in every try; give more tries, or check the rows")
        self.progress.expect(planned.verdict_after(done[-1].seconds))
        say(f"best: try {best.number}: {best.best.line()}")
        model.set_attn_implementation(attention)
        return self._saved(adapted, tokenizer, folder), done

    def retrained(self, folder: Path) -> Any:
        """Fine-tune the base model on the retain rows, or continue that from its last checkpoint, and return it."""
        base, tokenizer = self.load["control"]()
        model = plain_copy(base) if isinstance(self.base, nn.Module) else base
        self.progress.say("retraining the base model on the retain rows")
        work = folder / RETRAINING
        options: dict[str, Any] = {"num_train_epochs": RETRAINED_EPOCHS, "per_device_train_batch_size": 8}
        options |= {"learning_rate": 2e-4, "seed": self.seed, "chat": self.options["chat"]}
        options |= {"use_cpu": model.device.type == "cpu"}
        options |= {"output_dir": str(work), "save_strategy": "epoch", "save_total_limit": 1}
        trainer = FinetuneTrainer(model, tokenizer, self.data.retain, UnlearningArguments(**options), until=MEMORISED)
        checkpoints = whole_checkpoints(work)
        trainer.train(resume_from_checkpoint=str(checkpoints[0]) if checkpoints else None)
        return self._saved(model.eval(), tokenizer, folder)

    def _saved(self, model: Any, tokenizer: Any, folder: Path) -> Any:
        """Merge the adapter into the model, if it has one, write both to the folder, and return the model."""
        if hasattr(model, "merge_and_unload"):
            with writing(folder):
                model.save_pretrained(folder / ADAPTER)
            model = model.merge_and_unload()
        save_whole(model, tokenizer, folder / MODEL)
        return model.eval()


def tries_before(folder: Path) -> int:
    """Return the number of tries in a folder whose verdict was not good; 0 if there is no such verdict."""
    finished = folder / f"{TRIES}.json"
    if not finished.is_file() or not (folder / TRIES).is_dir():
        return 0
    return len(json.loads(finished.read_text(encoding="utf-8")))
