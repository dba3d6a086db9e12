"""The registry of unlearning methods: every family by name, in the order of the tables.

To add a method, write its file here (loss and `METHODS`) and add the file's name to `FAMILIES`; see README.md.
"""

from importlib import import_module

from lume_unlearn.methods.distill import DISTILL
from lume_unlearn.methods.finetune import FINETUNE
from lume_unlearn.methods.spec import Method

FAMILIES = (
    "gradient",
    "npo",
    "preference",
    "jensun",
    "rmu",
    "undial",
    "counterfactual",
    "shred",
    "weighted",
    "ceu",
    "pdu",
    "masc",
    "ngdiff",
    "task_vector",
    "sequential",
    "selective",
)
METHODS: dict[str, Method] = {
    method.name: method for family in FAMILIES for method in import_module(f"{__package__}.{family}").METHODS
}
COMMANDS: dict[str, Method] = {method.name: method for method in (FINETUNE, DISTILL)}
"""The losses of the commands of the same name, which do not unlearn and are not in the tables."""
