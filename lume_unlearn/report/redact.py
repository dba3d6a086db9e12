"""Hide personal data in texts that go into a report.

A word is shown only if many texts use it: written in lower case in at least three documents. What is capitalised
(names, places, months), holds a digit (dates, numbers, addresses), stands in an e-mail address or a link, or is rare is
masked, and so are symbols, since some of them spell: letters in squares, flags, Braille.
Words that tell of nobody ("does", "you") or that a reader needs in order to see what was asked ("social", "security")
are always shown, unless in capitals: OR and ME are states. That hides too much rather than too little, whatever the
model makes of the data.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

MASK = "•••"
LEAST_DOCUMENTS = 3

_TOKEN = re.compile(r"[^\s@<>()\[\]]+@[^\s@<>()\[\]]+|(?:https?://|www\.)[^\s<>()\[\]]+|\w+|\s+|.", re.DOTALL)
# fmt: off
_SHOWN = frozenset({
    # Articles, pronouns, auxiliaries, prepositions, conjunctions and other words that tell of nobody; not those that
    # are names or months too (may, will).
    "a", "about", "above", "after", "again", "against", "all", "also", "always", "am", "among", "an", "and", "any",
    "are", "around", "as", "at", "away", "back", "be", "because", "been", "before", "behind", "being", "below",
    "between", "both", "but", "by", "can", "cannot", "could", "did", "do", "does", "doing", "down", "during", "each",
    "either", "else", "even", "ever", "every", "few", "for", "from", "further", "had", "has", "have", "having", "he",
    "her", "here", "hers", "herself", "him", "himself", "his", "how", "however", "if", "in", "into", "is", "it", "its",
    "itself", "just", "know", "later", "less", "many", "me", "might", "more", "most", "much", "must", "my", "myself",
    "neither", "never", "no", "nor", "not", "nothing", "now", "of", "off", "often", "on", "once", "only", "or",
    "other", "our", "out", "over", "own", "please", "same", "shall", "she", "should", "since", "so", "some", "still",
    "such", "tell", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "though", "through", "to", "too", "toward", "under", "until", "up", "upon", "us", "very", "was", "we", "were",
    "what", "when", "where", "whether", "which", "while", "who", "whom", "whose", "why", "with", "within", "without",
    "would", "yet", "you", "your", "yours",
    # What questions about a person ask for.
    "address", "birth", "born", "contact", "date", "email", "home", "live", "lives", "mail", "name", "number", "phone",
    "provide", "reached", "resides", "security", "social", "ssn", "SSN",
})
# fmt: on


def plain(text: str) -> str:
    """The text in Unicode's compatibility form, without invisible characters: nothing in it hides a letter or digit."""
    if text.isascii():
        return text
    normal = unicodedata.normalize("NFKC", text)
    return "".join(char for char in normal if unicodedata.category(char) not in ("Cf", "Mn"))


def tokens(text: str) -> list[str]:
    """Cut a text into words, e-mail addresses, links, white space, and single other characters; joined, the text."""
    return _TOKEN.findall(text)


def common_words(documents: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """The words that may be shown, from the texts of each document: those in lower case in at least three documents."""
    counts = Counter(
        word for texts in documents.values() for word in {w for text in texts for w in tokens(plain(text))}
    )
    return _SHOWN | {
        word for word, count in counts.items() if count >= LEAST_DOCUMENTS and word.isalpha() and word.islower()
    }


def mask(token: str, shown: frozenset[str]) -> str:
    """One token of `tokens` as it may be shown: itself, or a mask of one length for all.

    Args:
        token: a word, an address, a link, white space or a character, of a text made `plain`.
        shown: what `common_words` returned.
    """
    if "@" in token and len(token) > 1:
        return f"{MASK}@{MASK}"
    if not any(char.isalnum() or unicodedata.category(char) == "So" for char in token):
        return token
    begins_sentence = token[0].isupper() and token[1:].islower() and token.lower() in _SHOWN
    return token if token in shown or begins_sentence else MASK
