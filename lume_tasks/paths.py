"""Where the task YAMLs lie."""

from pathlib import Path


def task_dir() -> Path:
    """Return the folder of the task YAMLs, the same way for a checkout, an editable install and a wheel.

    Raises:
        FileNotFoundError: the folder is missing, so the installation is not whole.
    """
    folder = Path(__file__).resolve().parent.parent / "yaml_tasks"
    if not folder.is_dir():
        raise FileNotFoundError(f"no task folder at {folder}: reinstall lume-unlearning (it installs this folder)")
    return folder
