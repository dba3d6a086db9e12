"""Membership attacks document by document, from the samples of `lume_mia`: what the pictures of them are drawn of."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from lume_unlearn.report.glossary import ATTACKS
from lume_unlearn.report.results import Sample, number

Scored = list[tuple[bool, float]]  # (member?, score): the higher, the likelier a member


def attack_scores(samples: Sequence[Sample]) -> dict[str, Scored]:
    """Attack -> the documents' scores, for the attacks that have one for every document and see both classes."""
    found: dict[str, list[Any]] = {attack: [sample.get(f"{attack}_auc") for sample in samples] for attack in ATTACKS}
    return {attack: [(bool(m), float(s)) for m, s in pairs] for attack, pairs in found.items() if _complete(pairs)}


def losses(scores: Scored) -> tuple[list[float], list[float]]:
    """Mean token losses in nats of members and of non-members, from the scores of the attack `loss`."""
    members, others = ([-score for member, score in scores if member is side] for side in (True, False))
    return members, others


def roc_points(scores: Scored) -> tuple[list[float], list[float]]:
    """False-positive and true-positive rates at every threshold, both rising from 0 to 1."""
    members, values = zip(*scores, strict=True)
    false, true, _ = roc_curve(members, np.nan_to_num(values), drop_intermediate=False)
    return false.tolist(), true.tolist()


def _complete(pairs: Sequence[Any]) -> bool:
    """Whether every document has a (member?, score) and both classes are there; a NaN is no score."""
    well_formed = all(isinstance(p, (list, tuple)) and len(p) == 2 and not math.isnan(number(p[1])) for p in pairs)
    return well_formed and len({bool(p[0]) for p in pairs}) == 2
