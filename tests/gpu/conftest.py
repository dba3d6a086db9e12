"""Tests that need a GPU, and nothing but this package: `python -m pytest -m gpu`.

LUME_GPU_TESTS_ON_CPU=1 runs them on the CPU as far as that goes, to find faults of the tests themselves.
"""

import os
from typing import Any

import pytest
import torch

from tests.conftest import RunMaker
from tests.faults.conftest import inputs  # noqa: F401
from tests.unlearn.conftest import short_answers  # noqa: F401

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def gpu_or_asked_for() -> None:
    if not (ON_GPU or os.environ.get("LUME_GPU_TESTS_ON_CPU") == "1"):
        pytest.skip("no GPU")


@pytest.fixture
def make_run(make_run: RunMaker) -> RunMaker:
    """Runs in float32 unless a test says otherwise, on GPUs too."""
    plain: dict[str, Any] = {"precision": "float32"}
    return lambda method, output="out", **options: make_run(method, output, **(plain | options))
