"""Render the user's own questions with the model's chat template, in training and in scoring alike."""

from collections.abc import Sequence
from typing import Any

from lume_tasks.data.rows import TASKS
from lume_tasks.errors import DataError, first_line


def through_template(tokenizer: Any, task: str, kind: str, chat: bool = True) -> bool:
    """Return whether the chat template renders a row: a question outside LUME's tasks, with ``chat`` and a template."""
    return chat and kind == "qa" and task not in TASKS and bool(getattr(tokenizer, "chat_template", None))


def plain_prompt(question: str, turns: Sequence[tuple[str, str]] = ()) -> str:
    """Join the contents of earlier turns and a question by blank lines, for models without a chat template."""
    return "\n\n".join([*(content for _, content in turns), question])


def chat_prompt(tokenizer: Any, question: str, turns: Sequence[tuple[str, str]] = ()) -> str:
    """Render one user turn up to where the model's answer begins, without a BOS that encoding would add again.

    Args:
        tokenizer: with a chat template.
        question: of the user.
        turns: (role, content) of the turns before it; the role is one of `rows.ROLES`.

    Raises:
        DataError: the template refuses these turns, for example because there is no system text.
    """
    messages = [{"role": role, "content": content} for role, content in (*turns, ("user", question))]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates raise errors of jinja2 and of their own
        roles = ", ".join(dict.fromkeys(role for role, _ in turns))
        what = f"a question after turns of {roles}" if turns else "a single question"
        advice = "leave the field turns out of these rows, or ask without it" if turns else "ask without it"
        raise DataError(
            f"the tokenizer's chat template refuses {what} ({first_line(error)}); {advice}: --chat "
            "false (lm_eval: --metadata '{\"lume_chat\": false}')"
        ) from error
    bos = tokenizer.bos_token
    if bos and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text
