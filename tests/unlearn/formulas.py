"""What each method minimises, a second time: plain PyTorch, row by row without padding, none of the package's losses.

A new method needs a row in `FORMULAS`: `test_losses` then checks its loss of logits, and `test_methods` the trainer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, one_hot, smooth_l1_loss, softmax

from lume_unlearn.data.encode import Tokens
from tests.unlearn.means import larger_mean, mean, rows_mean
from tests.unlearn.rows import asked, js, kl, logits, made_up, nll, own_mask, places, states, taught


@dataclass(frozen=True)
class Step:
    """One optimiser step: the model, the reference model, the rows, the method's hyperparameters by name."""

    model: Any
    before: Any
    forget: Sequence[Tokens]
    alternative: Sequence[Tokens]
    retain: Sequence[Tokens]
    params: dict[str, Any]
    control: Sequence[Tokens] = ()
    quantiles: Sequence[float] = ()


Term = Callable[[Step], Tensor]


@dataclass(frozen=True)
class Formula:
    forget: Term
    retain: Term | None
    params: dict[str, Any] = field(default_factory=dict)
    """Not the defaults, and values that matter on the rows of the tests (NLL of a forget token: 0.2 to 1.8 nats), so
    that a hyperparameter that is not used shows."""
    reference: tuple[str, ...] = ()
    """Sides whose reference NLL is computed once."""
    live: tuple[str, ...] = ()
    """Sides of which the reference model makes a forward pass in every step."""
    trained: tuple[str, ...] = ("forget", "retain")
    """Sides that the model in training reads."""
    weight: Callable[[float, list[float], dict[str, float]], float] = lambda start, losses, params: start
    """(first retain weight, retain losses of the steps so far, params) to the next; one step an epoch."""
    lowers: Term | None = None
    """What a few steps without retain term lower; None: they raise the NLL of the forget rows."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `UnlearningArguments` that the tests of all methods set for this one."""


# All rows of a side.


def gains(step: Step, side: Sequence[Tokens]) -> list[Tensor]:
    """NLL of each token above its reference NLL."""
    with torch.no_grad():
        old = [nll(step.before, row) for row in side]
    return [nll(step.model, row) - then for row, then in zip(side, old, strict=True)]


def preference(margins: Tensor, beta: float) -> Tensor:
    """The shape that NPO, SimNPO and DPO share."""
    return -2 / beta * logsigmoid(beta * margins).mean()


def forget_nll(step: Step) -> list[Tensor]:
    return [nll(step.model, row) for row in step.forget]


def forget_mean(step: Step) -> Tensor:
    return mean(forget_nll(step))


def ascent(step: Step) -> Tensor:
    return -mean(forget_nll(step))


def retain_mean(step: Step) -> Tensor:
    return mean([nll(step.model, row) for row in step.retain])


def alternative_mean(step: Step) -> Tensor:
    return mean([nll(step.model, row) for row in step.alternative])


def retain_kl(step: Step) -> Tensor:
    return mean([kl(logits(step.model, row), logits(step.before, row).detach()) for row in step.retain])


def retain_js(step: Step) -> Tensor:
    parts = []
    for row in step.retain:
        with torch.no_grad():
            then = softmax(logits(step.before, row), -1)
        parts.append(js(softmax(logits(step.model, row), -1), then))
    return mean(parts)


def retain_nll_kl(step: Step) -> Tensor:
    return retain_mean(step) + KL_WEIGHT * retain_kl(step)


KL_WEIGHT = 0.6


# The methods.


def npo(step: Step) -> Tensor:
    return preference(torch.stack([gain.sum() for gain in gains(step, step.forget)]), step.params["beta"])


def token_npo(step: Step) -> Tensor:
    return preference(torch.cat(gains(step, step.forget)), step.params["beta"])


def simnpo(step: Step) -> Tensor:
    means = torch.stack([part.mean() for part in forget_nll(step)])
    return preference(means - step.params["margin"], step.params["beta"])


def dpo(step: Step) -> Tensor:
    lose, win = ([gain.sum() for gain in gains(step, side)] for side in (step.forget, step.alternative))
    return preference(torch.stack(lose) - torch.stack(win), step.params["beta"])


def dpo_margin(step: Step) -> Tensor:
    return alternative_mean(step) - forget_mean(step)


def steer(step: Step) -> Tensor:
    width = step.model.config.hidden_size
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(SEED))
    target = step.params["steering"] * drawn / drawn.square().sum().sqrt()
    layer = int(step.params["layer"])
    return rows_mean([(states(step.model, row, layer) - target).square().sum(-1) / width for row in step.forget])


def stay(step: Step) -> Tensor:
    layer, parts = int(step.params["layer"]), []
    for row in step.retain:
        with torch.no_grad():
            then = states(step.before, row, layer)
        parts.append((states(step.model, row, layer) - then).square().mean(-1))
    return rows_mean(parts)


SEED = 5


def undial(step: Step) -> Tensor:
    parts = []
    for row in step.forget:
        targets = torch.tensor(row.input_ids)[places(row)]
        with torch.no_grad():
            teacher = logits(step.before, row).clone()
        teacher[range(len(targets)), targets] -= step.params["beta"]
        parts.append(-(softmax(teacher, -1) * log_softmax(logits(step.model, row), -1)).sum(-1))
    return mean(parts)


def level(step: Step) -> Tensor:
    found = []
    for row in step.forget:
        wanted = -taught(step.before, row, False)[range(row.scored), list(row.targets)].log().mean()
        found.append(smooth_l1_loss(nll(step.model, row).mean(), wanted))
    return torch.stack(found).mean()


def teacher(step: Step, row: Tokens) -> Tensor:
    """(labelled tokens, V) its probabilities."""
    return taught(step.before, row, step.params.get("blend", True))


def counterfactual(step: Step) -> Tensor:
    parts = []
    for row in step.forget:
        p, q = softmax(logits(step.model, row), -1), teacher(step, row)
        m = (p + q) / 2
        parts.append(((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2)
    return mean(parts) + step.params["level_weight"] * level(step)


def refuse(step: Step) -> Tensor:
    parts = []
    for row in step.alternative:
        now = softmax(logits(step.model, row), -1)
        parts.append(js(now, one_hot(torch.tensor(row.input_ids)[places(row)], now.shape[-1])))
    return mean(parts)


def masc(step: Step) -> Tensor:
    params, parts = step.params, []
    tau = math.log(params["rho"] / (1 - params["rho"]))
    for row in step.forget:
        for y, z in zip(
            torch.tensor(row.input_ids)[places(row)], params["beta"] * logits(step.model, row), strict=True
        ):
            others = torch.cat([z[:y], z[y + 1 :]]).sort(descending=True).values[: int(params["top_k"])]
            margin = z[y] - others.exp().sum().log()
            parts.append(torch.relu(margin - (tau - params["eta"]))[None] / params["eta"])
    return mean(parts)


def shred(step: Step) -> Tensor:
    params, parts = step.params, []
    for row in step.forget:
        targets = torch.tensor(row.input_ids)[places(row)]
        with torch.no_grad():
            teacher, surprise = logits(step.before, row).clone(), nll(step.before, row)
        for t in surprise.argsort(descending=True)[: math.ceil(params["share"] * len(targets))]:
            teacher[t, targets[t]] -= params["beta"]
        for z, now in zip(teacher, log_softmax(logits(step.model, row), -1), strict=True):
            kept = z.argsort(descending=True)[: int(params["top_k"])]
            q = softmax(z[kept], -1)
            parts.append((q * (q.log() - now[kept])).sum()[None])
    return mean(parts)


def weighted(step: Step, of_p: float, of_rest: float = 0.0) -> Tensor:
    """Ascent on p^of_p (1 - p)^of_rest NLL."""
    p = [(-part).exp().detach() for part in forget_nll(step)]
    return -mean([a**of_p * (1 - a) ** of_rest * part for a, part in zip(p, forget_nll(step), strict=True)])


def ceu(step: Step) -> Tensor:
    parts = []
    for row in step.forget:
        targets, now = torch.tensor(row.input_ids)[places(row)], logits(step.model, row)
        others = softmax(now.detach(), -1)
        others[range(len(targets)), targets] = 0.0
        others = others / others.sum(-1, keepdim=True)
        parts.append(-(others * log_softmax(now, -1)).sum(-1)[int(step.params["skip"]) :])
    return mean(parts)


def flatness(step: Step) -> Tensor:
    found = [logits(step.model, row) for row in step.forget]
    return mean([(part.max(-1).values - part.mean(-1)) ** 2 for part in found])


def dual(start: float, losses: list[float], params: dict[str, float]) -> float:
    weight = start
    for epoch, loss in enumerate(losses, start=1):
        if epoch > params["dual_warmup"]:
            weight = max(0.0, weight + params["dual_step"] * (loss - params["epsilon"]))
    return weight


def selective(start: float, losses: list[float], params: dict[str, float]) -> float:
    if len(losses) < 2:  # the first epoch only measures
        return start
    excess = losses[-1] - losses[0]
    return 1.2 if excess <= 0 else min(max(round(0.3 * 6**excess + 0.8, 1), 1.2), 2.3)


def sugd(step: Step, side: Sequence[Tokens]) -> Tensor:
    """A side's share in the mean over the rows of both."""
    means = [nll(step.model, row).mean() for row in side]
    return sum(means, torch.zeros(())) / (len(step.forget) + len(step.retain))


def swap(step: Step) -> Tensor:
    own, other = ([nll(step.model, row) for row in side] for side in (step.forget, step.control))
    ties, said = [], []
    for a, b, q in zip(own, other, step.quantiles or [0.5] * len(own), strict=True):
        pull = smooth_l1_loss(a.mean(), b.mean().detach(), beta=0.03).expand(len(a))
        ties.append(2 * (1 - q if a.mean() > b.mean() else q) * pull)
    goal = math.log(math.expm1(step.params["level"]) + 1e-5)
    odds = [[goal - (row.expm1() + 1e-5).log() for row in side] for side in (own, other)]
    words = [[own_mask(len(row)) * row.clamp(min=0) for row in side] for side in odds]
    for row, control in zip(step.alternative, step.control, strict=True):
        values = kl(logits(step.model, row), logits(step.before, asked(row, control)).detach())
        said.append(nll(step.model, row) if made_up(row) else values)
    return 2 * larger_mean(ties) + (larger_mean(words[0]) + larger_mean(words[1])) / 2 + larger_mean(said)


_ALL_SIDES = ("forget", "control", "alternative", "retain")
_PAIRS: dict[str, Any] = {
    "params": {"beta": 0.2},
    "reference": ("forget", "alternative"),
    "trained": ("forget", "alternative", "retain"),
    "lowers": dpo_margin,
}
FORMULAS: dict[str, Formula] = {
    "ga": Formula(ascent, None, trained=("forget",)),
    "gd": Formula(ascent, retain_mean),
    "kl": Formula(ascent, retain_kl, live=("retain",)),
    "npo": Formula(npo, retain_mean, {"beta": 0.2}, reference=("forget",)),
    "token-npo": Formula(token_npo, retain_nll_kl, {"beta": 0.7}, reference=("forget",), live=("retain",)),
    "simnpo": Formula(simnpo, retain_mean, {"beta": 2.0, "margin": 0.3}),
    "dpo": Formula(dpo, retain_mean, **_PAIRS),
    "idk-dpo": Formula(dpo, retain_mean, **_PAIRS),
    "altpo": Formula(dpo, retain_mean, **_PAIRS),
    "idk": Formula(alternative_mean, retain_mean, trained=("alternative", "retain"), lowers=alternative_mean),
    "jensun": Formula(refuse, retain_js, live=("retain",), trained=("alternative", "retain"), lowers=alternative_mean),
    "rmu": Formula(steer, stay, {"layer": 0, "steering": 3.0}, live=("retain",), lowers=steer),
    "undial": Formula(undial, None, {"beta": 4.0}, live=("forget",), trained=("forget",)),
    "counterfactual": Formula(
        counterfactual,
        retain_mean,
        {"contexts": 2, "divergence": "js", "level_weight": 0.4},
        reference=("forget",),
        lowers=counterfactual,
    ),
    "level": Formula(level, retain_mean, {"contexts": 2}, lowers=level),
    "shred": Formula(
        shred, None, {"share": 0.6, "beta": 4.0, "top_k": 20}, ("forget",), live=("forget",), trained=("forget",)
    ),
    "swap": Formula(swap, retain_mean, {"controls": 1, "answers": 1, "level": 3.0}, trained=_ALL_SIDES, lowers=swap),
    "wga": Formula(lambda step: weighted(step, step.params["beta"]), retain_mean, {"beta": 0.5}),
    "satimp": Formula(
        lambda step: weighted(step, step.params["beta1"], step.params["beta2"]), retain_mean, {"beta1": 2, "beta2": 0.5}
    ),
    "ceu": Formula(ceu, None, {"skip": 2}, trained=("forget",)),
    "pdu": Formula(
        flatness, retain_mean, {"epsilon": 0.2, "dual_step": 2.0, "dual_warmup": 1}, weight=dual, lowers=flatness
    ),
    "masc": Formula(masc, retain_mean, {"rho": 0.9, "eta": 0.5, "top_k": 3, "beta": 0.8}),
    "task-vector": Formula(forget_mean, None, {"scale": 2.0}, trained=("forget",)),
    "sugd": Formula(
        lambda step: -sugd(step, step.forget),
        lambda step: sugd(step, step.retain),
        {"chunk": 2, "retain_ratio": 2},
        options={"per_device_train_batch_size": 1, "num_train_epochs": 2},
    ),
    "agad": Formula(
        ascent,
        retain_mean,
        {"chunk": 3, "anneal_share": 0.5},
        options={"per_device_train_batch_size": 2, "num_train_epochs": 2},
    ),
    "selective": Formula(ascent, retain_mean, weight=selective),
}
RETAIN_TERMS: dict[str, Term | None] = {
    "nll": retain_mean,
    "kl": retain_kl,
    "js": retain_js,
    "nll+kl": retain_nll_kl,
    "none": None,
}
