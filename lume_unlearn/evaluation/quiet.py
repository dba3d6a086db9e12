"""Keep from the user what libraries say about how this package calls them, and nothing else that they say."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# The model is handed over as an object, which the harness remarks on each time.
HARNESS = (
    "lm_eval.models.huggingface",
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model through `pretrained`",
)
# Of scores that were not asked for.
NO_FINAL_SCORE = ("lume_tasks", "lume_score: no final score")


@contextmanager
def without_messages(logger: str, *beginnings: str) -> Iterator[None]:
    """Drop the messages of one logger that begin like this."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginnings)

    logging.getLogger(logger).addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(wanted)


@contextmanager
def without_git() -> Iterator[None]:
    """Have the harness not ask git for the current folder's commit: outside a repository git prints an error."""
    from lm_eval import evaluator

    asked = getattr(evaluator, "get_git_commit_hash", None)
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asked
