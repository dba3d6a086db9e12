"""Every loss as a function of logits and labels, in the shapes of transformers, for a training loop of your own.

    from lume_unlearn.methods.losses import npo, retain

    loss = npo(forget_logits, forget_labels, forget_reference_logits, beta=0.1)
    loss = loss + 2.0 * retain(retain_logits, retain_labels)

A function has the name of a method and computes its loss on forget rows. For `gd`, `kl`, `agad` and `selective` use
`ga`; for `idk-dpo` and `altpo` use `dpo`; for `task-vector`, which lowers the NLL, use `retain`. `functional` turns
your own class into such a function. `UnlearningTrainer` computes the same values without holding all logits at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, replace
from inspect import Parameter, Signature
from typing import Any, Literal

from lume_unlearn.methods.base import Batch, Method, Rows, TokenCounts
from lume_unlearn.methods.ceu import CEU
from lume_unlearn.methods.common import IGNORED, Tensor, at_least_float32, token_mean, token_nll
from lume_unlearn.methods.counterfactual import Counterfactual, Level
from lume_unlearn.methods.gradient import GA
from lume_unlearn.methods.jensun import JensUn
from lume_unlearn.methods.masc import MASC
from lume_unlearn.methods.npo import NPO, SimNPO, TokenNPO
from lume_unlearn.methods.pdu import PDU
from lume_unlearn.methods.preference import DPO, Idk
from lume_unlearn.methods.retain import retain_parts, retain_value
from lume_unlearn.methods.rmu import RMU
from lume_unlearn.methods.sequential import SUGD
from lume_unlearn.methods.shred import SHRED
from lume_unlearn.methods.swap import Swap
from lume_unlearn.methods.undial import Undial
from lume_unlearn.methods.weighted import WGA, SatImp

_SHAPES = {
    "logits": "(B, T, V) of the forget rows, from the model in training.",
    "hidden_states": "(B, T, d) of the forget rows, after the decoder layer that is steered.",
    "labels": "(B, T) token ids; -100 where there is no loss. The logits at t predict the label at t + 1.",
    "reference_logits": "(B, T, V) of the forget rows, from the reference model; without gradient.",
    "teacher_logits": "(B, T, V) of the forget rows, from a teacher that does not know them; without gradient.",
    "own_words": "(B, T) 1 at the labels that are part of a word that only this row has, else 0.",
    "control_logits": "(B, T, V) of each forget row about an invented person, from the model in training.",
    "control_labels": "(B, T) token ids of the controls; -100 where there is no loss.",
    "control_own_words": "(B, T) as own_words, of the controls.",
    "quantiles": "(B,) from 0 to 1: each answer becomes less likely than for this share of the invented persons.",
    "alternative_logits": "(B, U, V) of the alternative to each forget row, from the model in training.",
    "alternative_labels": "(B, U) token ids of the alternatives; -100 where there is no loss.",
    "alternative_teacher_logits": "(B, U, V) of the alternatives, from the reference model asked about others (see "
    "`swap.without_truth`).",
    "alternative_reference_logits": "(B, U, V) of the alternatives, from the reference model; without gradient.",
}


def functional(method: type[Method]) -> Callable[..., Tensor]:
    """Return the loss of a method on forget rows as a function of logits and labels.

    Its arguments are the tensors that the method needs, in the order of the signature, and the method's fields. It
    returns a scalar: the mean over the tokens or rows of this batch. Fields that only the trainer uses, such as
    ``layer``, change nothing.

    Args:
        method: a class, shipped or your own.
    """
    tensors = _tensors(method)
    keys = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in tensors]
    for name, field in method.params().items():
        default = Parameter.empty if field.default is MISSING else field.default
        keys.append(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=field.type))
    signature = Signature(keys, return_annotation="Tensor")

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(*args, **kwargs).arguments
        fields = {name: value for name, value in given.items() if name in method.params()}
        return _forget_loss(method(**fields), given)

    shapes = "\n".join(f"    {name}: {_SHAPES[name]}" for name in tensors)
    helps = "\n".join(f"    {name}: {field.metadata.get('help', '')}." for name, field in method.params().items())
    loss.__name__ = loss.__qualname__ = method.name.replace("-", "_")
    loss.__doc__ = f"{method.title or method.name}: {method.formula}.\n\nArgs:\n{shapes}\n{helps}"
    loss.__signature__ = signature  # type: ignore[attr-defined]
    return loss


def _tensors(method: type[Method]) -> list[str]:
    """Return the names of the tensors that a method's loss needs."""
    needs, found = method.needs, []
    if needs.forget_rows:
        found += ["hidden_states" if needs.hidden_states else "logits", "labels"]
        if needs.reference_logits or "forget" in needs.reference_nll:
            found.append("reference_logits")
        if needs.teacher:
            found.append("teacher_logits")
    if needs.persons:
        found += ["own_words", "control_logits", "control_labels", "control_own_words", "quantiles"]
    if needs.alternatives or needs.persons:
        found += ["alternative_logits", "alternative_labels"]
        if "alternative" in needs.reference_nll:
            found.append("alternative_reference_logits")
        if method.imitation_loss:
            found.append("alternative_teacher_logits")
    return found


def _forget_loss(method: Method, given: Mapping[str, Any]) -> Tensor:
    """Compute a method's loss on the forget rows of one batch, which is a whole optimiser step."""
    known = given.get("reference_logits", given.get("teacher_logits"))
    forget = _rows(given.get("logits"), given.get("labels"), known)
    alternative = _rows(*(given.get(f"alternative_{name}") for name in ("logits", "labels", "reference_logits")))
    control = _rows(*(given.get(f"control_{name}") for name in ("logits", "labels", "reference_logits")))
    if method.needs.persons:
        forget, control = (
            replace(rows, reference=given[f"{side}own_words"][:, 1:][given[f"{side}labels"][:, 1:] != IGNORED])
            for side, rows in (("", forget), ("control_", control))
        )
    if method.token_loss:
        forget = replace(forget, values=_token_values(method, given, forget, known))
    if method.imitation_loss:
        labels = given["alternative_labels"][:, 1:]
        own, said = (given[f"alternative_{name}"][:, :-1] for name in ("logits", "teacher_logits"))
        kept = labels != IGNORED
        values = method.imitation_loss(own[kept], labels[kept], said[kept].detach())
        alternative = replace(alternative, values=values)
    lengths = [rows.rows.bincount(minlength=rows.count).tolist() for rows in (forget, alternative, control)]
    counts = TokenCounts(lengths[0], lengths[1], [], lengths[2])
    return method.forget_loss(Batch(forget, alternative, counts, {}, control, given.get("quantiles")))


def _rows(logits: Tensor | None, labels: Tensor | None, reference_logits: Tensor | None) -> Rows:
    """Return the labelled tokens of a padded batch, flat, with their NLL and reference NLL if logits are given."""
    import torch

    if labels is None:
        return Rows(torch.zeros(0), torch.zeros(0, dtype=torch.long), 0, torch.zeros(0))
    kept = labels[:, 1:] != IGNORED

    def nll(outputs: Tensor | None) -> Tensor:
        return torch.zeros(0) if outputs is None else token_nll(outputs[:, :-1][kept], labels[:, 1:][kept])

    with torch.no_grad():
        reference = nll(reference_logits)
    values = nll(logits)
    return Rows(values, kept.nonzero()[:, 0], len(labels), reference, values)


def _token_values(method: Method, given: Mapping[str, Any], forget: Rows, known: Tensor | None) -> Tensor:
    """Compute the method's value of each forget token; ``known`` are the reference's or the teacher's logits."""
    labels = given["labels"]
    kept = labels[:, 1:] != IGNORED
    outputs = given["logits"][:, :-1] if "logits" in given else given["hidden_states"][:, 1:]
    reference: Any = None if known is None else at_least_float32(known[:, :-1][kept].detach())
    if method.needs.teacher:
        reference = reference.log_softmax(dim=-1)
    if method.select:
        reference = reference, method.select(forget.reference, forget.rows)
    values: Tensor = method.token_loss(outputs[kept], labels[:, 1:][kept], reference)
    return values


def retain(
    logits: Tensor,
    labels: Tensor,
    reference_logits: Tensor | None = None,
    term: Literal["nll", "kl", "js", "nll+kl"] = "nll",
    kl_weight: float = 1.0,
) -> Tensor:
    """Compute a retain term: a scalar, the token mean over the retain rows of this batch.

    Args:
        logits: (B, T, V) of the model in training.
        labels: (B, T) token ids; -100 where there is no loss.
        reference_logits: (B, T, V) of the reference model, for all terms but "nll".
        term: "nll", "kl", "js" or "nll+kl".
        kl_weight: weight of the KL divergence in "nll+kl".
    """
    kept = labels[:, 1:] != IGNORED
    own, targets = logits[:, :-1][kept], labels[:, 1:][kept]
    known = None if reference_logits is None else reference_logits[:, :-1][kept]
    total: Tensor = own.new_zeros(())
    for part, weight in retain_parts(term, kl_weight).items():
        total = total + weight * token_mean(retain_value(part, own, targets, known))
    return total


ga = functional(GA)
npo = functional(NPO)
token_npo = functional(TokenNPO)
simnpo = functional(SimNPO)
dpo = functional(DPO)
idk = functional(Idk)
jensun = functional(JensUn)
rmu = functional(RMU)
undial = functional(Undial)
counterfactual = functional(Counterfactual)
level = functional(Level)
shred = functional(SHRED)
swap = functional(Swap)
wga = functional(WGA)
satimp = functional(SatImp)
ceu = functional(CEU)
pdu = functional(PDU)
masc = functional(MASC)
sugd = functional(SUGD)
