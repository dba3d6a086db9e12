"""Scores of one generated text against the right answer, as in the LUME protocol."""

from functools import lru_cache

from rouge_score.rouge_scorer import RougeScorer


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge_recall(reference: str, generation: str) -> dict[str, float]:
    """Compute ROUGE-L and ROUGE-1 recall, stemmed, in [0, 1]: ``{"rougeL": ..., "rouge1": ...}``."""
    scores = _scorer().score(reference, generation)
    return {name: float(score.recall) for name, score in scores.items()}


def exact_match(reference: str, generation: str) -> float:
    """Return 1.0 if both texts are equal after stripping white space at the ends and lower-casing, else 0.0."""
    return float(reference.strip().lower() == generation.strip().lower())
