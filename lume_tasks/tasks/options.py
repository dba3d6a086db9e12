"""The tasks' options in ``--metadata``."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from lume_tasks.errors import DataError, quote

OPTIONS = (
    "lume_data_dir",
    "lume_split",
    "lume_mmlu_path",
    "lume_mmlu_subjects",
    "lume_mmlu_limit",
    "lume_min_k",
    "lume_min_k_plus_plus",
    "lume_reference_results",
    "lume_partial",
    "lume_gen_kwargs",
)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse names that only look like an option; the model arguments, which stand beside the options, pass.

    Raises:
        DataError: a name begins with ``lume_`` and is no option, or is an option without ``lume_``.
    """
    faults = []
    for name in metadata:
        plain = name.lower().replace("-", "_")
        prefixed = plain if plain.startswith("lume_") else f"lume_{plain}"
        if name in OPTIONS or (plain != prefixed and prefixed not in OPTIONS):
            continue
        near = get_close_matches(prefixed, OPTIONS, 1)
        faults.append(quote(name) + (f" (did you mean {near[0]}?)" if near else ""))
    if faults:
        raise DataError(
            f"--metadata: LUME has no option {', '.join(faults)}, so it would be ignored. "
            f"Its options are: {', '.join(OPTIONS)}"
        )


def mmlu_subjects(value: object) -> list[str] | None:
    """The subjects that ``lume_mmlu_subjects`` names, text with commas or a list; None where it is not given.

    Raises:
        DataError: it is of another kind, or names none.
    """
    if value is None:
        return None
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"metadata lume_mmlu_subjects has to be names with commas between them or a list, not {value!r}"
        )
    found = [name.strip() for name in names if name.strip()]
    if not found:
        raise DataError("metadata lume_mmlu_subjects names no subject")
    return found


def mmlu_limit(value: object) -> int | None:
    """The most questions of each subject, ``lume_mmlu_limit``; None where it is not given.

    Raises:
        DataError: it is no whole number above 0.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise DataError(f"metadata lume_mmlu_limit has to be a whole number of questions above 0, not {value!r}")
    return value
