"""Phases of SUGD and AGAD, and retain weights that change while training."""

from pathlib import Path

import pytest

from tests.unlearn.formulas import selective
from tests.unlearn.training import RETAIN_WEIGHT, build, entries

pytestmark = pytest.mark.usefixtures("little_to_collect")


def test_pdu_logs_its_dual_variable(tmp_path: Path) -> None:
    params = {"epsilon": 0.55, "dual_step": 3.0, "dual_warmup": 2.0}
    trainer = build(tmp_path, "pdu", epochs=4, batch_size=2, learning_rate=3e-3, params=params)
    trainer.train()
    found = entries(trainer)
    expected, weight = [], RETAIN_WEIGHT
    for step, entry in enumerate(found, start=1):  # two steps an epoch
        if step / 2 > 2:
            weight = max(0.0, weight + 3.0 * (entry["retain_loss"] - 0.55))
        expected.append(weight)
    assert [entry["retain_weight"] for entry in found] == pytest.approx(expected, rel=1e-6)
    assert expected[3] == RETAIN_WEIGHT != expected[4]  # two whole epochs without


def test_selective_raises_the_retain_weight_with_the_retain_loss(tmp_path: Path) -> None:
    trainer = build(tmp_path, "selective", epochs=4, batch_size=2, learning_rate=1e-2, retain_weight=0.4)
    trainer.train()
    found = entries(trainer)
    losses = [entry["retain_loss"] for entry in found]
    average = sum(losses[:2]) / 2  # of the first epoch
    expected = [0.4, 0.4, *(selective(0.4, [average, loss], {}) for loss in losses[2:])]
    assert [entry["retain_weight"] for entry in found] == pytest.approx(expected)
    assert max(expected) > 1.2, "the example is to lose retain rows"
    used = [0.4, *expected[:-1]]
    for entry, weight in zip(found, used, strict=True):
        assert entry["loss"] == pytest.approx(0.7 * entry["forget_loss"] + weight * entry["retain_loss"], rel=1e-5)
