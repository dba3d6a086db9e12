"""`--where` with names that have accents or capitals."""

import unicodedata

import pytest

from lume_tasks.data.fields import Options
from lume_tasks.data.prepare import prepared
from lume_tasks.errors import DataError


def test_accents_are_compared_and_shown_as_the_user_writes_them(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("name,question,answer\nZoë Lefèvre,Who?,A\nAda,Who else?,B\n", encoding="utf-8")
    apart = unicodedata.normalize("NFD", "Zoë Lefèvre")
    found = prepared([table], [], Options(where=f"name={apart}"))
    assert [row.output for row in found.forget] == ["A"]
    with pytest.raises(DataError, match='"Zoë Lefèvre"'):
        prepared([table], [], Options(where="name=Zoe Lefevre"))


def test_values_in_other_capitals_or_with_decimals_are_named(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("name,question,answer\nAda,Who?,A\nADA,Who else?,B\nada ,When?,C\nBob,Where?,D\n")
    found = prepared([table], [], Options(where="name=Ada"))
    warning = "warning: values that differ from it only in capital letters or decimals are on the other side: "
    assert found.summary[1:3] == ["--where name=Ada: 1 objects to forget, 3 to retain", f'{warning}"ADA", "ada"']
    table.write_text("customer,question,answer\n77,Who?,A\n77.0,Who else?,B\n77.05,When?,C\n")
    found = prepared([table], [], Options(where="customer=77"))
    assert found.summary[1:3] == ["--where customer=77: 1 objects to forget, 2 to retain", f'{warning}"77.0"']
