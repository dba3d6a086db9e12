"""Figures of the report: pure functions of plain data that return a matplotlib figure.

Series differ in colour (Okabe and Ito's palette, which colour-blind people can tell apart), marker and line style, so
that they can be told apart in grey too.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

Interval = tuple[float, float]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
STYLE: Any = {
    "text.parse_math": False,  # a model's name may contain a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "legend.frameon": False,
}
WIDTH = 4.6  # inches; three figures fit side by side on a desktop, one on a phone


@dataclass(frozen=True)
class Point:
    """One model: a score on forget rows (x) and on retain rows (y) with their 95 % intervals."""

    x: float
    y: float
    x_interval: Interval | None = None
    y_interval: Interval | None = None


@dataclass(frozen=True)
class Track:
    """A model, or the checkpoints of a run in order: kind of score -> one point for each.

    ``number`` selects colour and marker; it is the same in all figures of a report.
    """

    name: str
    number: int
    kinds: Mapping[str, Sequence[Point]]


@mpl.rc_context(STYLE)
def trade_off(tracks: Sequence[Track], kinds: Sequence[str], title: str) -> Figure:
    """Draw forget against retain scores; top left is good.

    The first of ``kinds`` has filled markers, the others hollow ones. The last point of a run is large and has its
    intervals.
    """
    figure, axes = _figure(title, 3.5 + 0.2 * len(tracks))
    for place, track in enumerate(tracks):
        look = _look(track.number)
        colour, marker = look["color"], look["marker"]
        size = 110 * 0.8**place + 24  # later markers are smaller, so that those in the same place all show
        for kind, points in track.kinds.items():
            _draw_points(axes, points, colour, marker, colour if kind == kinds[0] else "none", size)
        axes.scatter([], [], s=52, marker=marker, c=colour, label=track.name)
    for kind in kinds:
        fill = "0.4" if kind == kinds[0] else "none"
        axes.scatter([], [], s=52, marker="o", c=fill, edgecolors="0.4", linewidths=1.5, label=kind)
    axes.annotate("better", (0.3, 0.7), (0.5, 0.5), color="0.5", arrowprops={"arrowstyle": "->", "color": "0.5"})
    ticks = np.linspace(0, 1, 6)
    axes.set(xlabel="forget rows (low is good)", xlim=(-0.04, 1.04), xticks=ticks)
    axes.set(ylabel="retain rows (high is good)", ylim=(-0.04, 1.04), yticks=ticks)
    return _with_legend(figure)


def _draw_points(axes: Axes, points: Sequence[Point], colour: str, marker: str, fill: str, size: float) -> None:
    xs, ys = [point.x for point in points], [point.y for point in points]
    look: dict[str, Any] = {"marker": marker, "c": fill, "edgecolors": colour, "clip_on": False, "zorder": 3}
    axes.plot(xs, ys, color=colour, lw=0.8)
    axes.scatter(xs[:-1], ys[:-1], s=12, **look)
    axes.scatter(xs[-1:], ys[-1:], s=size, linewidths=1.5, **look)
    last = points[-1]
    if last.x_interval:
        axes.plot(last.x_interval, (last.y, last.y), color=colour, lw=1)
    if last.y_interval:
        axes.plot((last.x, last.x), last.y_interval, color=colour, lw=1)


@mpl.rc_context(STYLE)
def over_training(lines: Mapping[str, Sequence[tuple[float, float]]], unit: str, title: str) -> Figure:
    """Draw scores over the epochs or steps of one run: name of a score -> (place on the axis, score) in order."""
    figure, axes = _figure(title, 3.4 + 0.2 * len(lines))
    for number, (name, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), ms=5, lw=1.4, label=name, clip_on=False, **_look(number))
    axes.set(xlabel=unit, ylabel="score", ylim=(0, 1))
    axes.grid(axis="y", color="0.9")
    return _with_legend(figure)


@mpl.rc_context(STYLE)
def loss_histogram(members: Sequence[float], nonmembers: Sequence[float], upper: float, title: str) -> Figure:
    """Draw the distribution of a model's losses on member documents and on documents it never saw.

    Args:
        members: mean token NLL of each member document, in nats.
        nonmembers: of each document that was not in the training data.
        upper: end of the axis, the same for all models; higher losses are counted in the last bin.
        title: of the figure.
    """
    figure, axes = _figure(title, 3.6)
    filled: dict[str, Any] = {"color": COLOURS[0], "alpha": 0.55}
    hatched: dict[str, Any] = {"edgecolor": COLOURS[1], "facecolor": "none", "hatch": "////", "linewidth": 1.5}
    bins: Any = np.linspace(0, upper, 31)
    for losses, name, style in ((members, "member documents", filled), (nonmembers, "never seen", hatched)):
        label = f"{name} ({len(losses)})"
        axes.hist(np.clip(losses, 0, upper), bins, histtype="stepfilled", label=label, **style)
    axes.set(xlabel="mean loss of a document's tokens (nats)", ylabel="documents", xlim=(0, upper))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_legend(figure)


@dataclass(frozen=True)
class Curve:
    """ROC curve of an attack on one model: false-positive and true-positive rates, both rising from 0 to 1."""

    name: str
    number: int
    false: Sequence[float]
    true: Sequence[float]


@mpl.rc_context(STYLE)
def roc(curves: Sequence[Curve], title: str) -> Figure:
    """Draw ROC curves with a logarithmic axis of false positives; a rate of 0 is at half the smallest other one."""
    figure, axes = _figure(title, 3.4 + 0.2 * (len(curves) + 1))
    left = min(rate for curve in curves for rate in curve.false if rate > 0) / 2
    for curve in curves:
        style = _look(curve.number) | {"marker": ""}
        axes.plot(np.maximum(curve.false, left), curve.true, lw=1.8, label=curve.name, clip_on=False, **style)
    chance = np.geomspace(left, 1, 100)
    axes.plot(chance, chance, color="0.6", lw=1, label="chance")
    axes.set(xlabel="never seen, wrongly accused (log axis)", ylabel="member documents, caught", ylim=(0, 1.02))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left, 1)
    axes.grid(color="0.92")
    return _with_legend(figure)


@mpl.rc_context(STYLE)
def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170)
    return buffer.getvalue()


def _figure(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(textwrap.fill(title, 56))
    return figure, axes


def _with_legend(figure: Figure) -> Figure:
    """Put the legend below the axes, where it covers nothing however long the names are."""
    figure.legend(loc="outside lower left")
    return figure


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }
