"""The pictures: what is drawn where, that nothing depends on the order of models, and that names cannot break them."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from lume_unlearn.report import plots
from lume_unlearn.report.plots import Point


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def marks(figure: Figure) -> list[tuple[tuple[float, float], ...]]:
    """The places of each group of markers, without the legend's own."""
    groups = [np.asarray(group.get_offsets()) for group in figure.axes[0].collections if hasattr(group, "get_offsets")]
    return [tuple((float(x), float(y)) for x, y in group) for group in groups if len(group)]


def test_trade_off_draws_each_model_once_and_a_run_as_a_path() -> None:
    series = {
        "one": {"text": [Point(0.1, 0.9, (0.05, 0.2), (0.8, 1.0))], "facts": [Point(0.0, 1.0)]},
        "run": {"text": [Point(1.0, 1.0), Point(0.5, 0.9), Point(0.2, 0.8)]},
    }
    figure = plots.trade_off(series, {"one": 0, "run": 3}, "Task")
    assert marks(figure) == [((0.1, 0.9),), ((0.0, 1.0),), ((1.0, 1.0), (0.5, 0.9)), ((0.2, 0.8),)]
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert lines == [
        [[0.05, 0.9], [0.2, 0.9]],  # the intervals of the first point
        [[0.1, 0.8], [0.1, 1.0]],
        [[1.0, 1.0], [0.5, 0.9], [0.2, 0.8]],  # the run's path
    ]
    assert labels(figure) == ["one", "run", "text", "facts"]
    assert to_hex(figure.axes[0].lines[2].get_color()) == plots.COLOURS[3].lower()


def test_over_training_draws_a_line_a_score() -> None:
    figure = plots.over_training({"a": [(0, 1.0), (2, 0.5)], "b": [(2, 0.25)]}, "epoch", "run")
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[0, 1.0], [2, 0.5]], [[2, 0.25]]]
    assert figure.axes[0].get_xlabel() == "epoch"
    assert labels(figure) == ["a", "b"]


def test_the_histogram_counts_every_document_also_beyond_its_end() -> None:
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
    curves = {"a": ([0.0, 0.0, 0.25, 1.0], [0.0, 0.5, 1.0, 1.0]), "b": ([0.0, 0.5, 1.0], [0.0, 0.0, 1.0])}
    figure = plots.roc(curves, {"a": 0, "b": 1}, "Attack")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (0.125, 1.0)
    first, second, chance = axes.lines
    assert first.get_xydata().tolist() == [[0.125, 0.0], [0.125, 0.5], [0.25, 1.0], [1.0, 1.0]]
    assert second.get_xydata().tolist() == [[0.125, 0.0], [0.5, 0.0], [1.0, 1.0]]
    np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())
    assert first.get_linestyle() != second.get_linestyle()  # told apart in grey
    assert labels(figure) == ["a", "b", "guessing"]


def test_field_rates_puts_models_beside_each_other_in_the_row_of_their_field() -> None:
    rates = {"a": {"phone": (0.5, (0.4, 0.6)), "ssn": (0.0, None)}, "b": {"ssn": (1.0, None)}}
    figure = plots.field_rates(rates, {"a": 0, "b": 1}, "People")
    (phone, ssn), (other,) = marks(figure)
    assert (phone[0], ssn[0], other[0]) == (0.5, 0.0, 1.0)
    assert round(phone[1]) == 0
    assert round(ssn[1]) == round(other[1]) == 1
    assert ssn[1] < other[1]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["phone", "ssn"]
    interval = figure.axes[0].lines[0].get_xydata().tolist()
    assert interval == [[0.4, phone[1]], [0.6, phone[1]]]


@pytest.mark.parametrize("name", ["cost $x$ ^ _{", r"\frac{", "日本語 \U0001f600", "_hidden", "W" * 44])
def test_any_name_can_be_drawn(name: str) -> None:
    figure = plots.over_training({name: [(0, 1.0)]}, "epoch", name)
    assert [label.strip() for label in labels(figure)] == [name]
    assert plots.png(figure).startswith(b"\x89PNG")


def test_a_png_is_the_same_again_and_wide_enough_to_read() -> None:
    first, second = (plots.png(plots.over_training({"a": [(0, 1.0)]}, "epoch", "run")) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).width == round(plots.WIDTH * 170)


def test_forty_models_have_forty_looks() -> None:
    curves = {str(i): ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0]) for i in range(40)}
    figure = plots.roc(curves, {name: int(name) for name in curves}, "Attack")
    looks = {
        (line.get_color(), str(line.get_linestyle()), line._unscaled_dash_pattern) for line in figure.axes[0].lines
    }
    assert len(looks) == 41
