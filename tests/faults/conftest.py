"""What the fault tests of the trainers share."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.faults.runs")

from tests.faults.runs import write_inputs  # noqa: E402


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its rows and other answers (see `runs.write_inputs`)."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))
