"""The scores against closed forms and numbers worked out by hand."""

import copy
import math
import pickle
from itertools import combinations
from statistics import fmean

import pytest

from lume_tasks.metrics import aggregate
from lume_tasks.metrics.aggregate import Mean, mean
from lume_tasks.metrics.text import exact_match, repetition, rouge_recall
from lume_tasks.metrics.unlearning import leak_at_k


@pytest.mark.parametrize(
    ("reference", "generation", "rouge_l", "rouge_1"),
    [
        ("a b c d", "a b c d", 1.0, 1.0),
        # Recall: what is generated beyond the reference costs nothing.
        ("a b", "q a r s b t u v", 1.0, 1.0),
        # Stems: cat, run, fast. In order are two of five (cat fast, or run fast), anywhere three of five.
        ("The cats were running fast", "running cat fast", 2 / 5, 3 / 5),
        # Stemming also joins "memories" and "memory"; case and punctuation do not count.
        ("Memories, STAY!", "memory stays", 1.0, 1.0),
        # A word that stands twice in the reference has to be found twice.
        ("no no yes", "no", 1 / 3, 1 / 3),
        ("a b c", "", 0.0, 0.0),
        ("", "a b c", 0.0, 0.0),
    ],
)
def test_rouge_recall(reference: str, generation: str, rouge_l: float, rouge_1: float) -> None:
    recall = rouge_recall(reference, generation)
    assert recall == {"rougeL": pytest.approx(rouge_l, abs=1e-12), "rouge1": pytest.approx(rouge_1, abs=1e-12)}


@pytest.mark.parametrize("text", ["The cats were running fast, weren't they?", "an_id-7 of 12.5 MEMORIES", ""])
def test_rouge_recall_of_ascii_is_the_same_in_any_script(text: str) -> None:
    for other in ("running cat 7 12 memory", "fast id an wer t b a"):
        assert rouge_recall(text, other, any_script=True) == rouge_recall(text, other)


@pytest.mark.parametrize(
    ("reference", "generation", "rouge_l", "rouge_1"),
    [
        ("врач из Москвы", "Врач из Твери", 2 / 3, 2 / 3),
        ("चीनी किताब", "चीनी!", 1 / 2, 1 / 2),
        ("上海的医生", "医生 上海", 2 / 5, 4 / 5),
        ("ครู 1990", "ครู 1990", 1.0, 1.0),
        ("caf\u00e9s here", "cafe\u0301s", 1 / 2, 1 / 2),
        ("cafés", "caf s", 0.0, 0.0),
        ("yes \u2764\ufe0f", "yes", 1.0, 1.0),
    ],
)
def test_rouge_recall_of_any_script(reference: str, generation: str, rouge_l: float, rouge_1: float) -> None:
    recall = rouge_recall(reference, generation, any_script=True)
    assert recall == {"rougeL": pytest.approx(rouge_l, abs=1e-12), "rouge1": pytest.approx(rouge_1, abs=1e-12)}


@pytest.mark.parametrize(
    ("reference", "generation", "score"),
    [("Ada", "  aDA\n", 1.0), ("Ada", "Ada.", 0.0), ("Ada B", "Ada  B", 0.0), ("Élan", "éLAN", 1.0)],
)
def test_exact_match(reference: str, generation: str, score: float) -> None:
    assert exact_match(reference, generation) == score


@pytest.mark.parametrize(
    ("text", "share"),
    [("abababababab", 1 / 3), ("7" * 20, 10 / 11), ("Ada lived in Rome.", 0.0), ("short", 0.0), ("", 0.0)],
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@pytest.mark.parametrize(("auc", "score"), [(0.5, 1.0), (1.0, 0.0), (0.0, 0.0), (0.75, 0.5), (0.25, 0.5)])
def test_mia_score(auc: float, score: float) -> None:
    assert aggregate.mia_score(auc) == score


@pytest.mark.parametrize(
    ("forget", "retain", "expected"),
    [
        ([0.0] * 6, [1.0] * 6, 1.0),
        # Forget scores are inverted: 12 / (6 / 0.8 + 6 / 0.4) = 8 / 15.
        ([0.2] * 6, [0.4] * 6, 8 / 15),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1.0] * 6, 12 / (6 + sum(1 / x for x in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)))),
        ([0.0] * 5 + [1.0], [1.0] * 6, 0.0),
        ([0.0] * 6, [1.0] * 5 + [0.0], 0.0),
    ],
)
def test_task_aggregate(forget: list[float], retain: list[float], expected: float) -> None:
    assert aggregate.task_aggregate(forget, retain) == pytest.approx(expected, abs=1e-12)


def test_published_rows_are_consistent_with_the_final_score() -> None:
    # AILS-NTUA and NPO on 7B in arXiv 2504.02883: (task aggregate, MIA score, MMLU) and the final score beside them.
    assert aggregate.final_score(0.827, 0.847, 0.443) == pytest.approx(0.706, abs=5e-4)
    assert aggregate.final_score(0.021, 0.080, 0.463) == pytest.approx(0.188, abs=5e-4)


def test_mean() -> None:
    value = mean(x / 10 for x in (1, 2, 3))
    assert value == pytest.approx(0.2, abs=1e-15)
    # Exactly rounded whatever the order: the ranks of a parallel run hand their values over one after the other.
    values = [0.1, 1e16, 0.3, -1e16, 0.7]
    assert mean(values) == mean(sorted(values))
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert (type(copied), copied, copied.count) == (Mean, value, 3)
    assert math.isnan(mean([]))


def test_pooled_mean_weighs_by_rows() -> None:
    pooled = aggregate.pooled_mean([mean([1.0]), mean([0.0] * 3), mean([])])
    assert (pooled, pooled.count) == (0.25, 4)


def test_leak_at_k_is_the_mean_over_all_subsets_of_k_samples() -> None:
    scores = [0.3, 0.0, 1.0, 0.3, 0.6]
    for k in range(1, 6):
        assert leak_at_k(scores, k) == pytest.approx(fmean(map(max, combinations(scores, k))))
    # pass@k: 1 - C(n - c, k) / C(n, k) with c right answers of n
    assert leak_at_k([1.0] * 3 + [0.0] * 197, 100) == pytest.approx(1 - math.comb(197, 100) / math.comb(200, 100))
    with pytest.raises(ValueError, match="leak@6 needs at least 6 samples"):
        leak_at_k(scores, 6)
