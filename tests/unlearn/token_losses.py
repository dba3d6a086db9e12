"""The ``token_loss`` of methods as functions of logits, reference, targets and hyperparameters."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lume_unlearn.methods.ceu import CEU
from lume_unlearn.methods.counterfactual import Counterfactual
from lume_unlearn.methods.masc import MASC
from lume_unlearn.methods.pdu import PDU
from lume_unlearn.methods.shred import SHRED
from lume_unlearn.methods.undial import Undial


def masc_tokens(z: Tensor, y: Tensor, rho: float, eta: float, beta: float, top_k: int) -> Tensor:
    return MASC(rho, eta, top_k, beta).token_loss(z, y, None)


def shred_tokens(z: Tensor, ref: Tensor, y: Tensor, selected: Tensor, beta: float, top_k: int) -> Tensor:
    return SHRED(beta=beta, top_k=top_k).token_loss(z, y, (ref, selected))


def undial_tokens(z: Tensor, ref: Tensor, y: Tensor, beta: float) -> Tensor:
    return Undial(beta).token_loss(z, y, ref)


ceu_tokens = partial(CEU().token_loss, reference=None)
pdu_tokens = partial(PDU().token_loss, targets=None, reference=None)


def divergence_tokens(z: Tensor, teacher: Tensor, kind: Any) -> Tensor:
    return Counterfactual(divergence=kind).token_loss(z, torch.empty(0), teacher)
