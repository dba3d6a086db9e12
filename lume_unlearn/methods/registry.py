"""The registry of unlearning methods: every class by name, in the order of the tables.

To add a method, write its class in a file here and put it into `_CLASSES`; see README.md.
"""

from dataclasses import replace
from typing import Any

from lume_unlearn.checks import raise_faults
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method
from lume_unlearn.methods.ceu import CEU
from lume_unlearn.methods.counterfactual import Counterfactual, Level
from lume_unlearn.methods.gradient import GA, GD, KL
from lume_unlearn.methods.jensun import JensUn
from lume_unlearn.methods.masc import MASC
from lume_unlearn.methods.npo import NPO, SimNPO, TokenNPO
from lume_unlearn.methods.pdu import PDU
from lume_unlearn.methods.preference import DPO, AltPO, Idk, IdkDPO
from lume_unlearn.methods.rmu import RMU
from lume_unlearn.methods.selective import Selective
from lume_unlearn.methods.sequential import AGAD, SUGD
from lume_unlearn.methods.shred import SHRED
from lume_unlearn.methods.swap import Swap
from lume_unlearn.methods.task_vector import TaskVector
from lume_unlearn.methods.undial import Undial
from lume_unlearn.methods.weighted import WGA, SatImp

_CLASSES: tuple[type[Method], ...] = (
    *(GA, GD, KL, NPO, TokenNPO, SimNPO, DPO, IdkDPO, Idk, AltPO, JensUn, RMU, Undial, Counterfactual, Level, SHRED),
    *(Swap, WGA, SatImp, CEU, PDU, MASC, TaskVector, SUGD, AGAD, Selective),
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}
"""Every shipped method by its name, in the order of the tables."""


def method_of(method: Method | type[Method] | str, **params: Any) -> Method:
    """Return a new method, made from an instance, a class, or a name in `METHODS`, with its hyperparameters set.

    Args:
        method: instance, class or name of a method.
        params: hyperparameters by name; all others keep the value of the instance, or their default.

    Raises:
        ConfigError: there is no method of this name, it has no such hyperparameter, or a value cannot work.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ConfigError(f"--method {method!r}: choose one of {', '.join(METHODS)}")
    chosen = METHODS[method] if isinstance(method, str) else method
    known = chosen.params()
    fault = f"{chosen.name} has no such parameter (it has: {', '.join(known) or 'none'})"
    raise_faults([f"--{name} {value}: {fault}" for name, value in params.items() if name not in known])
    return replace(chosen, **params) if isinstance(chosen, Method) else chosen(**params)
