"""Scores of one generated text against the right answer, as in the LUME protocol."""

from rouge_score.rouge_scorer import RougeScorer

_SCORER = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge_recall(reference: str, generation: str) -> dict[str, float]:
    """Compute ROUGE-L and ROUGE-1 recall, stemmed, in [0, 1]: ``{"rougeL": ..., "rouge1": ...}``."""
    scores = _SCORER.score(reference, generation)
    return {name: float(score.recall) for name, score in scores.items()}


def exact_match(reference: str, generation: str) -> float:
    """Return 1.0 if both texts are equal after stripping white space at the ends and lower-casing, else 0.0."""
    return float(reference.strip().lower() == generation.strip().lower())


def repetition(text: str, length: int = 10) -> float:
    """Compute the share of the text's windows of ``length`` characters that repeat an earlier one, in [0, 1].

    A text shorter than a window scores 0. Worked example: "abababababab", length 10: 3 windows, "ab...", "ba...", and
    "ab..." again: 1/3.
    """
    windows = [text[start : start + length] for start in range(len(text) - length + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0
