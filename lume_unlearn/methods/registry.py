"""The registry of unlearning methods.

Adding a method: a loss function in `losses.py`, a row here, a recipe in `recipes/`, a row in the tests' table
(`tests/unlearn/formulas.py`). The command line, `lume-unlearn methods` and the checks of options follow from the row.
"""

from collections.abc import Mapping

from torch import Tensor

from lume_unlearn.data import schedule
from lume_unlearn.data.schedule import Key
from lume_unlearn.methods import losses
from lume_unlearn.methods.spec import Batch, Method, Param, Rows, Sizes


def _ascent(batch: Batch) -> Tensor:
    return losses.gradient_ascent(batch.forget.values, batch.sizes.forget_tokens)


def _descent(batch: Batch) -> Tensor:
    return losses.token_mean(batch.forget.values, batch.sizes.forget_tokens)


def _refusal(batch: Batch) -> Tensor:
    return losses.token_mean(batch.alternative.values, max(sum(batch.sizes.alternative), 1))


def _npo(batch: Batch) -> Tensor:
    rows = batch.forget
    return losses.npo(rows.values, rows.rows, rows.reference, rows.count, batch.params["beta"], batch.sizes.forget_rows)


def _token_npo(batch: Batch) -> Tensor:
    count = batch.sizes.forget_tokens
    return losses.token_npo(batch.forget.values, batch.forget.reference, batch.params["beta"], count)


def _simnpo(batch: Batch) -> Tensor:
    rows, params = batch.forget, batch.params
    count = batch.sizes.forget_rows
    return losses.simnpo(rows.values, rows.rows, rows.count, params["beta"], params["margin"], count)


def _dpo(batch: Batch) -> Tensor:
    lose, win = batch.forget, batch.alternative
    return losses.dpo(
        lose.values,
        lose.rows,
        lose.reference,
        win.values,
        win.rows,
        win.reference,
        lose.count,
        batch.params["beta"],
        batch.sizes.forget_rows,
    )


def _wga(batch: Batch) -> Tensor:
    return losses.wga(batch.forget.values, batch.params["beta"], batch.sizes.forget_tokens)


def _satimp(batch: Batch) -> Tensor:
    params = batch.params
    return losses.satimp(batch.forget.values, params["beta1"], params["beta2"], batch.sizes.forget_tokens)


def _ceu(batch: Batch) -> Tensor:
    skip = int(batch.params["skip"])
    count = max(sum(max(size - skip, 0) for size in batch.sizes.forget), 1)
    rows = batch.forget
    return losses.token_mean(rows.values * losses.after_first(rows.rows, skip), count)


def _row_mean_forget(batch: Batch) -> Tensor:
    rows = batch.forget
    return losses.row_mean(rows.values, rows.rows, rows.count, batch.sizes.forget_rows)


def _row_mean_retain(rows: Rows, sizes: Sizes) -> Tensor:
    return losses.row_mean(rows.values, rows.rows, rows.count, max(len(sizes.retain), 1))


def _sugd(batch: Batch) -> Tensor:
    rows = batch.forget
    return -losses.row_mean(rows.values, rows.rows, rows.count, len(batch.sizes.forget) + len(batch.sizes.retain))


def _sugd_retain(rows: Rows, sizes: Sizes) -> Tensor:
    return losses.row_mean(rows.values, rows.rows, rows.count, len(sizes.forget) + len(sizes.retain))


def _steer(params: Mapping[str, float], states: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    direction = losses.rmu_direction(states.shape[-1], int(params["seed"]))
    return losses.state_distance(states, params["steering"] * direction.to(states.device))


def _undial(params: Mapping[str, float], logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return losses.undial_tokens(logits, reference, targets, params["beta"])


def _ceu_value(params: Mapping[str, float], logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return losses.ceu_tokens(logits, targets)


def _pdu_value(params: Mapping[str, float], logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    return losses.pdu_tokens(logits)


def _pdu_adapt(state: dict[str, float], loss: float, epoch: float, params: Mapping[str, float]) -> dict[str, float]:
    if epoch <= params["dual_warmup"]:
        return state
    return {"weight": losses.pdu_dual(state["weight"], loss, params["epsilon"], params["dual_step"])}


def _selective_adapt(
    state: dict[str, float], loss: float, epoch: float, params: Mapping[str, float]
) -> dict[str, float]:
    if epoch <= 1:  # the first epoch only measures
        total, steps = state.get("total", 0.0) + loss, state.get("steps", 0.0) + 1
        return {"weight": state["weight"], "total": total, "steps": steps}
    return state | {"weight": losses.selective_weight(loss, state["total"] / state["steps"])}


def _sugd_phases(
    forget: int, retain: int, batch_size: int, epochs: int, params: Mapping[str, float]
) -> list[list[list[Key]]]:
    chunk, ratio = int(params["chunk"]), int(params["retain_ratio"])
    return schedule.sequential(forget, retain, batch_size, chunk, ratio, epochs)


def _agad_phases(
    forget: int, retain: int, batch_size: int, epochs: int, params: Mapping[str, float]
) -> list[list[list[Key]]]:
    chunk, seed = int(params["chunk"]), int(params["seed"])
    return schedule.annealed(forget, retain, batch_size, chunk, params["anneal_share"], epochs, seed)


_BETA = "strength of the method: see its formula"
_CHUNK = "forget rows of one chunk"
_CONSTANT_RATE = {"lr_schedule": "constant", "warmup": 0.0}


def _beta(default: float, zero: bool = False) -> dict[str, Param]:
    return {"beta": Param(default, _BETA, zero)}


_METHODS = (
    Method(
        "ga",
        "gradient ascent",
        "Jang et al. 2022, arXiv 2210.01504",
        "-NLL, token mean",
        _ascent,
        retain="none",
    ),
    Method("gd", "gradient difference", "Liu et al. 2022, arXiv 2203.12817", "-NLL, token mean", _ascent),
    Method("kl", "KL minimisation", "Maini et al. 2024, arXiv 2401.06121", "-NLL, token mean", _ascent, retain="kl"),
    Method(
        "npo",
        "negative preference optimisation",
        "Zhang et al. 2024, arXiv 2404.05868",
        "-2/beta log sigmoid(beta (NLL - NLL before)), sums over the answer",
        _npo,
        reference=("forget",),
        params=_beta(0.1),
    ),
    Method(
        "token-npo",
        "NPO on single tokens",
        "Bronec and Helcl 2025, arXiv 2503.13690",
        "-2/beta log sigmoid(beta (NLL - NLL before)) of each token, token mean",
        _token_npo,
        retain="nll+kl",
        reference=("forget",),
        params=_beta(0.5),
        defaults={"epochs": 20, "batch_size": 4, "kl_weight": 0.5},
    ),
    Method(
        "simnpo",
        "simple NPO, without a reference",
        "Fan et al. 2024, arXiv 2410.07163",
        "-2/beta log sigmoid(beta (NLL - margin)), means over the answer",
        _simnpo,
        params=_beta(4.5) | {"margin": Param(0.0, "NLL up to which forgetting is pushed hardest", zero=True)},
        defaults={"forget_weight": 0.125},
    ),
    Method(
        "dpo",
        "direct preference optimisation",
        "Rafailov et al. 2023, arXiv 2305.18290",
        "-2/beta log sigmoid(beta (gain of the alternative - gain of the answer)), sums; alternatives from a file",
        _dpo,
        reference=("forget", "alternative"),
        alternative="file",
        params=_beta(0.1),
    ),
    Method(
        "idk-dpo",
        "DPO towards refusals",
        "Maini et al. 2024, arXiv 2401.06121",
        "as dpo, with a refusal as the alternative",
        _dpo,
        reference=("forget", "alternative"),
        alternative="refusals",
        params=_beta(0.1),
    ),
    Method(
        "idk",
        "training on refusals",
        "Maini et al. 2024, arXiv 2401.06121",
        "NLL of a refusal, token mean",
        _refusal,
        alternative="refusals",
        forget_pass=False,
    ),
    Method(
        "altpo",
        "DPO towards generated alternatives",
        "Mekala et al. 2024, arXiv 2409.13474",
        "as dpo, with alternatives that `lume-unlearn alternatives` has the model write",
        _dpo,
        reference=("forget", "alternative"),
        alternative="file",
        params=_beta(0.1),
        defaults={"epochs": 2, "learning_rate": {"full": 5e-5}},
    ),
    Method(
        "rmu",
        "representation misdirection",
        "Li et al. 2024, arXiv 2403.03218",
        "distance of the hidden states from a random direction, mean over rows",
        _row_mean_forget,
        retain="states",
        retain_terms=("states", "none"),
        retain_mean=_row_mean_retain,
        value=_steer,
        states=True,
        params={
            "layer": Param(7, "decoder layer, from 0, whose output is steered", zero=True, whole=True),
            "steering": Param(6.5, "length of the vector that forget states are steered to"),
        },
        defaults=_CONSTANT_RATE
        | {"epochs": 1, "batch_size": 4, "retain_weight": 1200.0, "learning_rate": {"full": 5e-5}},
    ),
    Method(
        "undial",
        "self-distillation with adjusted logits",
        "Dong et al. 2024, arXiv 2402.10052",
        "cross entropy with the model before, the answer's logits lowered by beta; token mean",
        _descent,
        retain="none",
        value=_undial,
        live_reference=True,
        params=_beta(10.0, zero=True),
        defaults={"learning_rate": {"full": 1e-4}},
    ),
    Method(
        "wga",
        "weighted gradient ascent",
        "Wang et al. 2025, arXiv 2502.19301",
        "-p^beta NLL, token mean",
        _wga,
        params=_beta(1.0, zero=True),
        defaults={"epochs": 5, "batch_size": 16},
    ),
    Method(
        "satimp",
        "saturation and importance",
        "Yang et al. 2025, arXiv 2505.11953",
        "-p^beta1 (1 - p)^beta2 NLL, token mean",
        _satimp,
        params={
            "beta1": Param(5.0, "exponent of p in satimp's weight", zero=True),
            "beta2": Param(1.0, "exponent of 1 - p in satimp's weight", zero=True),
        },
        defaults={"epochs": 5, "retain_weight": 0.1},
    ),
    Method(
        "ceu",
        "cross-entropy unlearning",
        "Yang 2025, arXiv 2503.01224",
        "cross entropy with the own distribution without the answer's token, token mean",
        _ceu,
        retain="none",
        value=_ceu_value,
        params={"skip": Param(1, "first tokens of each answer that ceu leaves out", zero=True, whole=True)},
    ),
    Method(
        "pdu",
        "primal-dual unlearning",
        "Entesari et al. 2025, arXiv 2506.05314",
        "(largest - mean logit)^2, token mean; retain weight follows retain loss - epsilon",
        _descent,
        retain_terms=("nll", "kl"),
        value=_pdu_value,
        params={
            "epsilon": Param(0.3, "retain loss that pdu allows", zero=True),
            "dual_step": Param(5.0, "step of pdu's dual variable", zero=True),
            "dual_warmup": Param(5.0, "epochs before pdu's dual variable moves", zero=True),
        },
        defaults={"retain_weight": 100.0},
        adapt=_pdu_adapt,
    ),
    Method(
        "ngdiff",
        "normalised gradient difference",
        "Bu et al. 2024, arXiv 2410.22086",
        "gradients g_R/|g_R| - g_F/|g_F| of the NLL; learning rate found every 10 steps",
        _descent,
        retain_terms=("nll",),
        normalised=True,
        params={
            "rate_every": Param(
                10, "steps between two searches for ngdiff's learning rate; 0 for none", zero=True, whole=True
            ),
            "rate_range": Param(10.0, "ngdiff's learning rate stays within so many times the first, up and down"),
        },
        defaults=_CONSTANT_RATE | {"epochs": 15, "learning_rate": {"full": 5e-5}, "max_grad_norm": 0.0},
    ),
    Method(
        "task-vector",
        "negated task vector",
        "Ilharco et al. 2022, arXiv 2212.04089",
        "NLL, token mean; then the change times -scale",
        _descent,
        retain="none",
        retain_terms=("none",),
        params={"scale": Param(5.0, "times that the task vector is subtracted")},
        negated=True,
    ),
    Method(
        "sugd",
        "sequential unlearning by gradient difference",
        "Premptis et al. 2025, arXiv 2503.02443",
        "-NLL, mean over rows, chunk after chunk of the forget rows",
        _sugd,
        retain_terms=("nll",),
        retain_mean=_sugd_retain,
        params={
            "chunk": Param(32, _CHUNK, whole=True),
            "retain_ratio": Param(7, "retain rows beside each forget row", whole=True),
        },
        defaults={"epochs": 7, "batch_size": 1, "retain_weight": 0.5, "warmup": 0.0},
        phases=_sugd_phases,
    ),
    Method(
        "agad",
        "alternating gradient ascent and descent",
        "Premptis et al. 2025, arXiv 2503.02443",
        "-NLL, token mean, on a chunk of the forget rows; then NLL on retain rows, in turn",
        _ascent,
        retain_terms=("nll",),
        params={
            "chunk": Param(64, _CHUNK, whole=True),
            "anneal_share": Param(0.25, "share of the retain rows trained on after each chunk", most=1.0),
        },
        defaults={"epochs": 3, "batch_size": 16, "learning_rate": {"full": 5e-5, "lora": 5e-5}, "warmup": 0.0},
        phases=_agad_phases,
    ),
    Method(
        "selective",
        "selective layers, adaptive retain weight",
        "Agrawal and Huang 2025, arXiv 2504.12996",
        "-NLL, token mean; retain weight 1.2 to 2.3 as the retain loss rises",
        _ascent,
        retain_terms=("nll",),
        defaults={
            "epochs": 8,
            "batch_size": 60,
            "warmup": 0.0,
            "learning_rate": {"full": 1.5e-5},
            "retain_weight": 1.2,
        },
        adapt=_selective_adapt,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
