"""Scores of one generated text against the right answer, as in the LUME protocol."""

import re
import unicodedata

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from lume_tasks.data.text import UNSPACED


class AnyScriptTokenizer(DefaultTokenizer):
    """ROUGE's tokenizer, which drops all characters but a to z and 0 to 9, for the words of all scripts.

    Words in ASCII stay the same. In scripts without spaces each character is a token.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        plain = unicodedata.normalize("NFC", text.lower())
        plain = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in plain)
        tokens: list[str] = []
        for word in re.findall(rf"[{UNSPACED}]|\w[^\s{UNSPACED}]*", plain):
            tokens += super().tokenize(word) if word.isascii() else [word]
        return tokens


_SCORER = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
_ANY_SCRIPT = RougeScorer(["rouge1", "rougeL"], tokenizer=AnyScriptTokenizer(use_stemmer=True))


def rouge_recall(reference: str, generation: str, any_script: bool = False) -> dict[str, float]:
    """Compute ROUGE-L and ROUGE-1 recall, stemmed, in [0, 1]: ``{"rougeL": ..., "rouge1": ...}``.

    Only with ``any_script`` do other letters than a to z count (see `AnyScriptTokenizer`); the benchmark ignores them.
    """
    scores = (_ANY_SCRIPT if any_script else _SCORER).score(reference, generation)
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
