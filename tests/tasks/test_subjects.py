"""Whom a question is about: companies are no persons."""

import re

import pytest

from lume_tasks.data.invented import control_names, family_names, listed_names
from lume_tasks.data.subjects import find_subjects, holds_name, swapped
from tests.tasks.test_swap import question


def test_a_company_is_no_person() -> None:
    texts = (
        "What does Ada Gold earn at Acme GmbH?",
        "Since when is Ada Gold at Acme GmbH & Co. KG?",
        "Is Orange S.A. ours?",
    )
    rows = [question(i, text) for i, text in enumerate([*texts, "Where is Orange S.A.?", "What is Acme GmbH's plan?"])]
    assert find_subjects(rows) == {"aqa0": "Ada Gold", "aqa1": "Ada Gold"}
    assert family_names(["Acme GmbH", "Ada Gold", "Eva Roth"], always=True) == {
        "Ada Gold": ["Roth"],
        "Eva Roth": ["Gold"],
    }


@pytest.mark.parametrize("form", ["GmbH", "Inc.", "S.A.", "GmbH & Co. KG"])
def test_a_company_as_subject_is_compared_with_companies(form: str) -> None:
    names = control_names(f"Acme Works {form}", 40, "", len, ["Gold"])
    assert all(re.fullmatch(rf"\w+ \w+ {form}", name) for name in names)
    assert set(control_names(f"Acme {form}", 40, "", len)[0].split()[:1]) <= listed_names("en_US")[-1]
    asked = swapped(f"Who owns Acme Works {form}, is it Acme?", f"Acme Works {form}", names[0])
    assert asked == f"Who owns {names[0]}, is it {names[0].split()[0]}?"
    assert not holds_name(f"Acme {form}", f"Works {form}")
