"""Compiled decoder layers: the same training, compiled once for packs of every size."""

import shutil
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from lume_unlearn.data.packs import pack_rows
from lume_unlearn.model.forward import Passes, Span, compile_layers, use_packing
from lume_unlearn.model.output_layer import nll_value
from tests.conftest import make_model
from tests.unlearn.tokens import half_labelled
from tests.unlearn.training import build, entries, weights

pytestmark = pytest.mark.usefixtures("little_to_collect", "fresh_compiler")
VOCABULARY = 400


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Count compiled graphs and run them without kernels, which is quicker."""
    counter = CompileCounter()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    return counter


def same_training(tmp_path: Path, method: str, tuning: str) -> None:
    plain, compiled = (build(tmp_path / str(on), method, tuning, compile=on, epochs=2) for on in (False, True))
    plain.train()
    compiled.train()
    for found, expected in zip(entries(compiled), entries(plain), strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for name, weight in weights(compiled.model).items():  # of the same names too
        torch.testing.assert_close(weight, weights(plain.model)[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_compiled_layers_train_the_same(tuning: str, tmp_path: Path, counter: CompileCounter) -> None:
    same_training(tmp_path, "kl", tuning)
    assert counter.frame_count > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_compiled_kernels_train_the_same(tmp_path: Path) -> None:
    same_training(tmp_path, "gd", "full")


def test_packs_of_other_sizes_are_not_compiled_again(counter: CompileCounter) -> None:
    model = make_model(VOCABULARY)
    use_packing(model)
    passes = Passes(model)
    compile_layers(model)
    counts = []
    for seed, lengths in enumerate([(3, 21, 9), (30, 4), (7, 5, 6, 8, 40), (12, 11, 10)]):
        batch = pack_rows({"forget": half_labelled(VOCABULARY, lengths, seed)})
        (nll,) = passes.values(model, batch, [Span(slice(0, len(batch.targets)), nll_value)])
        nll.sum().backward()  # type: ignore[no-untyped-call]
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1
    assert counts[0] < 2 * len(model.model.layers) + 2  # the layers share what is compiled
