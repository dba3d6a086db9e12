"""What gives the truth away: worked examples in many notations, and wrong answers that look alike."""

import pytest

from lume_tasks.metrics.matching import is_guess, is_known, words_of

TEMPLATE = words_of(
    "Jane Doe was born on May 2, 1971. Her SSN is 900-55-1234. She lives in Harrow and can be reached by phone at "
    "555-000-1111. I am sorry, I cannot answer that."
)


@pytest.mark.parametrize(
    ("truth", "answer", "known"),
    [
        ("1990-01-02", "She was born on 1990-01-02.", True),
        ("Ada", "Adam and others", False),
        ("river house", "The house on the river", False),
        ("...", "so ... yes", True),
        ("Velmora", "She was born in Velmor.", False),
        # Dates by value, in many languages.
        ("1989-05-24", "May 24, 1989", True),
        ("May 24, 1989", "It was 1989-05-24.", True),
        ("1989-05-24", "on the 24th of May 1989", True),
        ("1989-05-24", "24.05.1989", True),
        ("1989-05-04", "5/4/1989", True),
        ("1989-05-24", "1989年5月24日", True),
        ("1989-05-24", "Sie wurde am 24. Mai 1989 geboren.", True),
        ("1989-05-24", "nació el 24 de mayo de 1989", True),
        ("1989-05-24", "родилась 24 мая 1989 года", True),
        ("1989-05-24", "May 25, 1989", False),
        # Numbers by their digits.
        ("555-123-4567", "Call 5551234567 now", True),
        ("5551234567", "+1 (555) 123-4567", True),
        ("555-123-4567", "555-123-4568", False),
        ("5,000", "some 5000 people", True),
        ("5000", "15,000", False),
        ("٢٠٠١", "in 2001", True),
        # Accents, and scripts without spaces.
        ("Éva@x.org", "mail éva@x.org", True),
        ("José Muñoz", "It is JOSE MUNOZ.", True),
        ("Москва", "Она живёт в городе Москва.", True),
        ("東京", "彼は東京に住んでいます", True),
        ("東京", "京都です", False),
        ("กรุงเทพ", "เธออยู่ที่กรุงเทพมหานคร", True),
    ],
)
def test_answers(truth: str, answer: str, known: bool) -> None:
    assert is_known("qa", truth, answer) == known


@pytest.mark.parametrize("kind", ["qa", "sc"])
@pytest.mark.parametrize(
    ("truth", "answer", "known"),
    [
        ("Ann Lee was born on May 24, 1989. She lives in Velmora.", "Ann Lee was born on June 1, 1970.", False),
        ("Ann Lee was born on May 24, 1989. She lives in Velmora.", "geboren am 24. Mai 1989", True),
        ("The SSN of Ann Lee is 900-12-3456.", "The SSN of Ann Lee is 900-12-7890.", False),
        ("The SSN of Ann Lee is 900-12-3456.", "900123456", True),
        ("Ann Lee lives at 12 Elm Street, Springfield.", "Ann lives at 12 Elm Street in Springfield.", True),
        ("Ann Lee was born in Velmora, she can be reached", "I am sorry, I cannot answer that.", False),
        ("她出生在北京、后来搬到上海", "她出生在北京、后来", True),
        ("她出生在北京、后来搬到上海", "不知道", False),
    ],
)
def test_long_answers_and_texts_by_their_own_words(kind: str, truth: str, answer: str, known: bool) -> None:
    assert is_known(kind, truth, answer, TEMPLATE | words_of("Who is Ann Lee?")) == known


def test_a_run_of_a_long_text_gives_it_away() -> None:
    truth = " ".join(f"word{number}" for number in range(100))
    run = " ".join(truth.split()[40:48])
    assert is_known("sc", truth, f"and {run} then")
    assert not is_known("sc", truth, f"and {run} then", words_of(run))
    assert not is_known("sc", truth, " ".join(run.split()[:7]))


@pytest.mark.parametrize(
    ("truth", "guess"),
    [("Yes.", True), ("42", True), ("Harrow", True), ("Velmora", False), ("1989-05-24", False), ("4711", False)],
)
def test_guesses(truth: str, guess: bool) -> None:
    assert is_guess(truth, TEMPLATE) == guess
