"""The figures: what is drawn where, and that no name can break them."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lume_unlearn.report import plots
from lume_unlearn.report.plots import Curve, Point, Track


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def marks(figure: Figure) -> list[tuple[tuple[float, float], ...]]:
    """The places of each group of markers, without the legend's own."""
    groups = [np.asarray(group.get_offsets()) for group in figure.axes[0].collections if hasattr(group, "get_offsets")]
    return [tuple((float(x), float(y)) for x, y in group) for group in groups if len(group)]


def test_trade_off_draws_a_run_as_a_path_and_its_last_point_with_intervals() -> None:
    one = {"text": [Point(0.1, 0.9, (0.05, 0.2), (0.8, 1.0))], "facts": [Point(0.0, 1.0)]}
    run = {"text": [Point(1.0, 1.0), Point(0.5, 0.9), Point(0.2, 0.8)]}
    figure = plots.trade_off([Track("one", 0, one), Track("run", 3, run)], ["text", "facts"], "Task")
    assert marks(figure) == [((0.1, 0.9),), ((0.0, 1.0),), ((1.0, 1.0), (0.5, 0.9)), ((0.2, 0.8),)]
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert [[0.05, 0.9], [0.2, 0.9]] in lines  # the intervals of the first point
    assert [[0.1, 0.8], [0.1, 1.0]] in lines
    assert lines[-1] == [[1.0, 1.0], [0.5, 0.9], [0.2, 0.8]]
    assert labels(figure) == ["one", "run", "text", "facts"]
    assert to_hex(figure.axes[0].lines[-1].get_color()) == plots.COLOURS[3].lower()


def test_over_training_draws_a_line_a_score() -> None:
    figure = plots.over_training({"a": [(0, 1.0), (2, 0.5)], "b": [(2, 0.25)]}, "epoch", "run")
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[0, 1.0], [2, 0.5]], [[2, 0.25]]]
    assert figure.axes[0].get_xlabel() == "epoch"
    assert labels(figure) == ["a", "b"]


def test_histogram_counts_documents_beyond_its_end_in_the_last_bin() -> None:
    figure = plots.loss_histogram([0.1, 0.1, 2.9], [2.5, 50.0, float("inf")], 3.0, "model")
    counts = []
    for patch in figure.axes[0].patches:
        outline = patch.get_path().vertices
        areas = np.diff(outline[:, 0]) * outline[:-1, 1]  # of the steps from left to right; on the way back height is 0
        counts.append(round(float(areas[areas > 0].sum() / 0.1)))
    assert counts == [3, 3]
    assert labels(figure) == ["member documents (3)", "never seen (3)"]
    assert figure.axes[0].get_xlim() == (0.0, 3.0)


def test_roc_has_a_log_axis_that_starts_at_half_the_smallest_rate() -> None:
    curves = [
        Curve("a", 0, [0.0, 0.0, 0.25, 1.0], [0.0, 0.5, 1.0, 1.0]),
        Curve("b", 1, [0.0, 0.5, 1.0], [0.0, 0.0, 1.0]),
    ]
    figure = plots.roc(curves, "Attack")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (0.125, 1.0)
    first, second, chance = axes.lines
    assert first.get_xydata().tolist() == [[0.125, 0.0], [0.125, 0.5], [0.25, 1.0], [1.0, 1.0]]
    assert second.get_xydata().tolist() == [[0.125, 0.0], [0.5, 0.0], [1.0, 1.0]]
    np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())
    assert first.get_linestyle() != second.get_linestyle()  # can be told apart in grey
    assert labels(figure) == ["a", "b", "chance"]


@pytest.mark.parametrize("name", ["cost $x$ ^ _{", r"\frac{", "W" * 44])
def test_any_name_can_be_drawn(name: str) -> None:
    figure = plots.over_training({name: [(0, 1.0)]}, "epoch", name)
    assert labels(figure) == [name]
    assert plots.png(figure).startswith(b"\x89PNG")
