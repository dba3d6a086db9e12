"""Figures of the report.

Series differ in colour (Okabe and Ito's palette, which colour-blind people can tell apart), marker and line style. A
model has the same look in all figures.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sklearn.metrics import roc_curve

from lume_tasks.errors import visible
from lume_unlearn.report.glossary import GOOD, KINDS, TASKS
from lume_unlearn.report.results import Model

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
STYLE: Any = {
    "text.parse_math": False,  # a model's name may contain a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
FILLS: dict[str, Any] = {"regurgitation": "full", "knowledge": "none"}
Lines: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
LONGEST_NAME = 44  # characters of a model's name in a figure


class Picture(NamedTuple):
    """The name of a figure's file, what it shows, and the PNG."""

    file: str
    alt: str
    png: bytes

    @property
    def source(self) -> str:
        """The figure as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@mpl.rc_context(STYLE)
def trade_off(models: Sequence[Model], task: str) -> Picture | None:
    """Draw forget against retain scores; top left is good. None if the task was not scored.

    Scores of repeated text have filled markers, those of facts hollow ones. Lines are 95 % intervals.
    """
    scored = {place: model for place, model in enumerate(models) if model.evaluation(task)}
    if not scored:
        return None
    figure, axes = _figure(TASKS[task], len(scored) + len(FILLS))
    for place, model in scored.items():
        look = _look(place)
        colour, marker = look["color"], look["marker"]
        axes.plot([], [], color=colour, marker=marker, ls="", label=_label(model.name))
        for kind, fill in FILLS.items():
            x, y = (_score(model, task, f"{side}_{kind}") for side in GOOD)
            axes.plot(x, y, color=colour, marker=marker, fillstyle=fill, clip_on=False, ms=8)
            x_ends, y_ends = (model.interval(task, f"{side}_{kind}") for side in GOOD)
            if x_ends and y_ends:
                axes.plot(x_ends, (y, y), color=colour, lw=1)
                axes.plot((x, x), y_ends, color=colour, lw=1)
    for kind, fill in FILLS.items():
        axes.plot([], [], "o", color="0.4", fillstyle=fill, label=KINDS[kind])
    axes.annotate("better", (0.3, 0.7), (0.5, 0.5), color="0.5", arrowprops={"arrowstyle": "->", "color": "0.5"})
    axes.set(xlabel="forget rows (low is good)", xlim=(-0.04, 1.04))
    axes.set(ylabel="retain rows (high is good)", ylim=(-0.04, 1.04))
    return _picture(f"tradeoff_{task}", f"{TASKS[task]}: scores on forget rows against scores on retain rows", figure)


def _score(model: Model, task: str, metric: str) -> float:
    value = model.score(task, metric)
    return math.nan if value is None else value  # matplotlib leaves out NaN


@mpl.rc_context(STYLE)
def over_epochs(lines: Lines, file: str, title: str, label: str, goal: float | None = None) -> Picture | None:
    """Draw numbers over the epochs of training; None if there are no numbers.

    Args:
        lines: name of each line -> its (epoch, value) in order; NaN leaves a gap.
        file: name of the figure's file, without its ending.
        title: of the figure.
        label: of the vertical axis, which goes from 0 to 1.
        goal: the retrained model's number, drawn as a dotted line.
    """
    lines = {name: points for name, points in lines.items() if not all(math.isnan(value) for _, value in points)}
    if not lines:
        return None
    figure, axes = _figure(title, len(lines) + 1)
    for place, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), ms=5, lw=1.4, label=_label(name), clip_on=False, **_look(place))
    if goal is not None:
        axes.axhline(goal, color="0.4", ls=":", label="retrained")
    axes.set(xlabel="epoch", ylabel=label, ylim=(0, 1))
    axes.grid(axis="y", color="0.9")
    return _picture(file, f"{title}, by epoch", figure)


@mpl.rc_context(STYLE)
def roc(models: Sequence[Model]) -> Picture | None:
    """Draw ROC curves of the loss attack with a logarithmic axis of false positives; None without logged samples."""
    figure, axes = _figure("Loss attack: ROC", len(models) + 1)
    lowest = 1.0
    for number, model in enumerate(models):
        pairs = [sample["loss_auc"] for sample in model.samples("lume_mia") if sample.get("loss_auc")]
        members, scores = [member for member, _ in pairs], [score for _, score in pairs]
        if len(set(members)) < 2 or not all(map(math.isfinite, scores)):
            continue
        false, true, _ = roc_curve(members, scores, drop_intermediate=False)
        left = 0.5 / members.count(False)  # half the smallest rate above 0
        lowest = min(lowest, left)
        style = _look(number) | {"marker": ""}
        axes.plot(np.maximum(false, left), true, lw=1.8, label=_label(model.name), clip_on=False, **style)
    if not axes.lines:
        return None
    chance = np.geomspace(lowest, 1, 100)
    axes.plot(chance, chance, color="0.6", lw=1, label="chance")
    axes.set(xlabel="never seen, wrongly accused (log axis)", ylabel="member documents, caught", ylim=(0, 1.02))
    axes.set(xscale="log", xlim=(lowest, 1))
    axes.xaxis.set_major_formatter("{x:g}")  # the default formatter writes TeX, which `STYLE` turns off
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.92")
    return _picture("roc_loss", "ROC curves of the loss attack", figure)


def _figure(title: str, legend_lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.4 + 0.2 * legend_lines), layout="constrained")  # inches; three fit side by side
    axes = figure.add_subplot()
    axes.set_title(title, wrap=True)
    return figure, axes


def _picture(name: str, alt: str, figure: Figure) -> Picture:
    """Draw the figure, with the legend below the axes, where it covers nothing."""
    figure.legend(loc="outside lower left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170)
    return Picture(f"{name}.png", alt, buffer.getvalue())


def _look(number: int) -> dict[str, Any]:
    colour, marker, line = (options[number % len(options)] for options in (COLOURS, MARKERS, LINES))
    return {"color": colour, "marker": marker, "linestyle": line}


def _label(name: str) -> str:
    """Return a name for a figure: printable, and only the end of a long one."""
    shown = visible(name).replace("\n", " ")
    return shown if len(shown) <= LONGEST_NAME else f"…{shown[1 - LONGEST_NAME :]}"
