"""Tests that need a GPU, and nothing but this package: `python -m pytest -m gpu`.

LUME_GPU_TESTS_ON_CPU=1 runs them on the CPU as far as that goes, to find faults of the tests themselves.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when torch first uses the GPU

import pytest
import torch

from tests.conftest import RunMaker
from tests.faults.conftest import inputs  # noqa: F401
from tests.unlearn.conftest import short_answers  # noqa: F401

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def gpu_or_asked_for() -> Iterator[None]:
    """Skip without a GPU; let its kernels add up in the same order each time where they can."""
    if not (ON_GPU or os.environ.get("LUME_GPU_TESTS_ON_CPU") == "1"):
        pytest.skip("no GPU")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def make_run(make_run: RunMaker) -> RunMaker:
    """Runs in float32 unless a test says otherwise, on GPUs too."""
    return lambda method, output="out", **options: make_run(method, output, **({"bf16": False} | options))
