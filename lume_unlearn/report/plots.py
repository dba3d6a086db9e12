"""The report's pictures: pure functions of plain data that return a matplotlib figure.

Series differ in colour (Okabe and Ito's palette, which colour-blind eyes tell apart), marker and line, so that they can
be told apart in grey too.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

Interval = tuple[float, float]
Numbers = Mapping[str, int]  # name of a model or run -> number of its colour, marker and line, the same in all pictures

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
STYLE: Any = {
    "text.parse_math": False,  # names of models may hold a dollar sign
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
}
WIDTH = 4.6  # inches; three stand beside each other on a desk's screen, one fills a phone's


@dataclass(frozen=True)
class Point:
    """One model in a trade-off plot: a score on forget rows (x) and on retain rows (y) with their 95 % intervals."""

    x: float
    y: float
    x_interval: Interval | None = None
    y_interval: Interval | None = None


def trade_off(series: Mapping[str, Mapping[str, Sequence[Point]]], numbers: Numbers, title: str) -> Figure:
    """Forget against retain scores; top left is good.

    Args:
        series: name of a model or run -> kind of score -> its points, one for a model, more (joined by a line) for the
            checkpoints of a run. The first kind has filled markers, the second hollow ones; of a run the last point is
            large and has its intervals.
        numbers: name -> number of its colour and marker.
        title: of the figure.
    """
    figure, axes = _figure(title, 3.5 + 0.2 * len(series))
    kinds = list(dict.fromkeys(kind for points in series.values() for kind in points))
    for number, (name, points) in enumerate(series.items()):
        colour, marker = _colour(numbers[name]), _marker(numbers[name])
        size = 110 * 0.8**number + 24  # so that those in the same place all show
        for kind, track in points.items():
            fill = colour if kind == kinds[0] else "none"  # hollow, so that what lies below shows
            xs, ys = [point.x for point in track], [point.y for point in track]
            look: dict[str, Any] = {"marker": marker, "c": fill, "edgecolors": colour, "clip_on": False}
            if len(track) > 1:
                axes.plot(xs, ys, color=colour, lw=0.8, alpha=0.7, zorder=2)
                axes.scatter(xs[:-1], ys[:-1], s=12, linewidths=1, zorder=3, **look)
            axes.scatter(xs[-1:], ys[-1:], s=size, linewidths=1.5, zorder=3, **look)
            _whiskers(axes, track[-1], colour)
        axes.scatter([], [], s=52, marker=marker, c=colour, label=_label(name))
    for kind, fill in zip(kinds, ("0.4", "none"), strict=False):
        axes.scatter([], [], s=52, marker="o", c=fill, edgecolors="0.4", linewidths=1.5, label=kind)
    axes.annotate("better", (0.62, 0.34), (0.74, 0.16), color="0.4", arrowprops={"arrowstyle": "->", "color": "0.4"})
    axes.set(xlabel="forget rows (low is good)", ylabel="retain rows (high is good)", **_unit_square())
    return _with_legend(figure, axes)


def over_training(lines: Mapping[str, Sequence[tuple[float, float]]], unit: str, title: str) -> Figure:
    """Scores over the epochs or steps of one run.

    Args:
        lines: name of a score -> (place on the axis, score), in order.
        unit: what the axis counts.
        title: of the figure.
    """
    figure, axes = _figure(title, 3.4 + 0.2 * len(lines))
    for number, (name, points) in enumerate(lines.items()):
        style: dict[str, Any] = {"color": _colour(number), "marker": _marker(number), "ls": _line(number)}
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, ms=5, lw=1.4, label=_label(name), clip_on=False, **style)
    axes.set(xlabel=unit, ylabel="score", ylim=(0, 1))
    axes.grid(axis="y", color="0.9")
    return _with_legend(figure, axes)


def loss_histogram(members: Sequence[float], nonmembers: Sequence[float], upper: float, title: str) -> Figure:
    """How surprising a model finds member documents and documents that it never saw.

    Args:
        members: mean token loss of each member document, in nats.
        nonmembers: of each document never seen.
        upper: end of the axis, the same for models that are to be compared.
        title: of the figure.
    """
    figure, axes = _figure(title, 3.4)
    filled: dict[str, Any] = {"color": COLOURS[0], "alpha": 0.55}
    hatched: dict[str, Any] = {"edgecolor": COLOURS[1], "facecolor": "none", "hatch": "////", "linewidth": 1.5}
    edges = np.linspace(0.0, upper, 31).tolist()
    for losses, name, style in ((members, "member documents", filled), (nonmembers, "never seen", hatched)):
        label = f"{name} ({len(losses)})"
        axes.hist(np.clip(losses, 0.0, upper), bins=edges, histtype="stepfilled", label=label, **style)
    axes.set(xlabel="mean loss of a document's tokens (nats)", ylabel="documents", xlim=(0, upper))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_legend(figure, axes)


def roc(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], numbers: Numbers, title: str) -> Figure:
    """What an attack catches at what price in false accusations, the price on a log axis.

    Args:
        curves: name of a model -> (false-positive rates, true-positive rates), both rising from 0 to 1. A rate of 0,
            which has no place on the axis, is drawn at half the smallest other one.
        numbers: name -> number of its colour and line.
        title: of the figure.
    """
    figure, axes = _figure(title, 3.6 + 0.2 * (len(curves) + 1))
    left = min(rate for false, _ in curves.values() for rate in false if rate > 0) / 2
    for name, (false, true) in curves.items():
        style: dict[str, Any] = {"color": _colour(numbers[name]), "ls": _line(numbers[name])}
        axes.plot(np.maximum(false, left), true, lw=1.8, label=_label(name), clip_on=False, **style)
    chance = np.geomspace(left, 1.0, 100)
    axes.plot(chance, chance, color="0.6", lw=1, label="guessing")
    axes.set(xlabel="never seen, wrongly accused (log axis)", ylabel="member documents, caught", ylim=(0, 1.02))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left, 1.0)
    axes.grid(color="0.92")
    return _with_legend(figure, axes)


def field_rates(
    rates: Mapping[str, Mapping[str, tuple[float, Interval | None]]], numbers: Numbers, title: str
) -> Figure:
    """How often each field of personal data comes out, a line a field, a marker a model.

    Args:
        rates: name of a model -> field -> (rate, its 95 % interval).
        numbers: name -> number of its colour and marker.
        title: of the figure.
    """
    fields = list(dict.fromkeys(field for by_field in rates.values() for field in by_field))
    height = max(0.45, 0.13 * (len(rates) + 1))
    figure, axes = _figure(title, 1.4 + height * len(fields) + 0.2 * len(rates))
    for number, (name, by_field) in enumerate(rates.items()):
        colour, marker = _colour(numbers[name]), _marker(numbers[name])
        shift = (number - (len(rates) - 1) / 2) * 0.8 / len(rates)
        places = [fields.index(field) + shift for field in by_field]
        values = [rate for rate, _ in by_field.values()]
        axes.scatter(values, places, s=32, marker=marker, c=colour, label=_label(name), zorder=3, clip_on=False)
        for place, (_, interval) in zip(places, by_field.values(), strict=True):
            if interval:
                axes.plot(interval, (place, place), color=colour, lw=1.2, zorder=2)
    axes.set(xlabel="share of questions answered exactly", xlim=(-0.03, 1.03), ylim=(len(fields) - 0.5, -0.5))
    axes.set_yticks(range(len(fields)), fields)
    axes.tick_params(axis="y", length=0)
    for line in range(1, len(fields)):
        axes.axhline(line - 0.5, color="0.8", lw=0.8)
    axes.grid(axis="x", color="0.92")
    return _with_legend(figure, axes)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        warnings.simplefilter("ignore", UserWarning)  # names in a script that the font lacks, or too long for the page
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def _figure(title: str, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(textwrap.fill(title, 56))
    return figure, axes


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    """Put the legend below, where it covers nothing however long the names are."""
    with mpl.rc_context(STYLE):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=1, borderaxespad=0)
    return figure


def _whiskers(axes: Axes, point: Point, colour: str) -> None:
    if point.x_interval:
        axes.plot(point.x_interval, (point.y, point.y), color=colour, lw=1, zorder=2)
    if point.y_interval:
        axes.plot((point.x, point.x), point.y_interval, color=colour, lw=1, zorder=2)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _label(name: str) -> str:
    return f" {name}" if name.startswith("_") else name  # matplotlib leaves names with a low line in front out


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def _line(number: int) -> Any:
    return LINES[number % len(LINES)]


def _unit_square() -> dict[str, Any]:
    ticks = np.linspace(0, 1, 6)
    return {"xlim": (-0.04, 1.04), "ylim": (-0.04, 1.04), "xticks": ticks, "yticks": ticks}
