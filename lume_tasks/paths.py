"""Find the folder of the task YAMLs."""

from pathlib import Path


def task_dir() -> Path:
    """Return the folder of the task YAMLs; FileNotFoundError if the installation lacks it."""
    folder = Path(__file__).resolve().parent.parent / "yaml_tasks"
    if not folder.is_dir():
        raise FileNotFoundError(f"no task folder at {folder}: reinstall lume-unlearning (it installs this folder)")
    return folder
