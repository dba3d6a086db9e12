"""A long test on real data, in a file of its own so that it runs beside the others."""

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.test_real import assert_official_numbers


@pytest.mark.timeout(1800)
def test_hf_gives_the_official_numbers(run: Any, lume_data: Path, checkpoint: Path) -> None:
    """One task: the others differ in their rows alone, and `lume-hf` is tested on the second among the slow tests."""
    assert_official_numbers(run, lume_data, checkpoint, "hf", (1,))
