"""Disks that are full or read-only: a clear error, and the last complete checkpoint as it was."""

import os
import resource
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError

from lume_unlearn.errors import ConfigError
from lume_unlearn.files import publish_result
from lume_unlearn.training.checkpoints import whole_checkpoints
from tests.faults.runs import assert_equal, broken_off, ended, in_child, make

pytestmark = pytest.mark.faults


def test_a_file_size_limit_in_the_middle_of_a_checkpoint(inputs, tmp_path, capfd):
    """As on a full disk."""
    run = make(inputs, tmp_path / "out", tuning="full")
    broken_off(run, 3)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        run(resume=True)

    assert ended(in_child(limited)) == 1
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"ConfigError: --output {tmp_path}/out: cannot be written (" in message
    assert [path.name for path in whole_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-1"]
    assert not (tmp_path / "out" / ".partial").exists()
    assert_equal(make(inputs, tmp_path / "whole", tuning="full")(), run(resume=True))


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),  # tokenizers
    ],
    ids=["python", "torch", "safetensors", "tokenizers"],
)
def test_each_librarys_error_becomes_a_message(fault, inputs, tmp_path):
    with mock.patch.object(torch, "save", side_effect=fault), pytest.raises(ConfigError) as caught:
        make(inputs, tmp_path / "out")()
    assert f"cannot be written ({fault}); make room" in str(caught.value)
    defect = mock.patch.object(torch, "save", side_effect=RuntimeError("a defect"))
    with defect, pytest.raises(RuntimeError, match="a defect"):  # another error is not changed
        make(inputs, tmp_path / "other")()


def test_a_result_replaces_what_was_left_of_an_older_one(tmp_path):
    """A process that dies in between must not leave a model of old and new files."""
    for folder in (tmp_path / "out", tmp_path / "out" / ".partial"):
        folder.mkdir()
        for name in ("adapter_config.json", "config.json", "model.safetensors"):
            (folder / name).write_text(folder.name)
    own, left = os.replace, []

    def replace(old, new):
        left.append(sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()))
        own(old, new)

    with mock.patch.object(os, "replace", replace):
        publish_result(tmp_path / "out" / ".partial", tmp_path / "out")
    assert left[0] == left[1] == ["model.safetensors"]
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {".partial"}
