"""The registry of unlearning methods: every family by name, in the order of the tables.

To add a method, write its file here (loss and `METHODS`) and add it to `FAMILIES`; see README.md in this folder.
"""

from lume_unlearn.methods import (
    ceu,
    gradient,
    ngdiff,
    npo,
    pdu,
    preference,
    rmu,
    selective,
    sequential,
    task_vector,
    undial,
    weighted,
)
from lume_unlearn.methods.spec import Method

FAMILIES = (
    gradient,
    npo,
    preference,
    rmu,
    undial,
    weighted,
    ceu,
    pdu,
    ngdiff,
    task_vector,
    sequential,
    selective,
)
METHODS: dict[str, Method] = {method.name: method for family in FAMILIES for method in family.METHODS}
