"""Chats of the user's files: each user turn that the assistant answers becomes a question, with and without context."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import groupby, pairwise
from typing import Any

from lume_tasks.data.items import ALONE, Item
from lume_tasks.data.rows import Turns

CALL = "call"
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
    "function_call": CALL,
}
_JOINED = ("user", "assistant")

Turn = tuple[str, str]  # role and text
Key = tuple[str, str, Turns]  # input, output and turns of a row


def chat_questions(chat: Any) -> tuple[list[Item], list[str], Counter[str]]:
    """Make questions from each user turn that the assistant answers: one with the turns before it, and one alone.

    A user turn without turns before it gives one question. Consecutive user turns are joined by a blank line; so are
    the assistant turns up to the next user turn, which are the answer. A turn that only calls a tool is no answer. The
    result of a tool is a turn before later questions, but not for the question that the tool was called for.

    Args:
        chat: A list of ``{"role", "content"}`` or ``{"from", "value"}``, or JSON of one. The content is text, None, or
            a list of parts.

    Returns:
        The questions, the faults of the chat, and counts of what was left out or changed.
    """
    if isinstance(chat, str):  # a table's cell
        with suppress(json.JSONDecodeError):
            chat = json.loads(chat)
    counts: Counter[str] = Counter()
    if not isinstance(chat, list) or not all(isinstance(turn, Mapping) for turn in chat):
        return [], ['is not a chat, a list of {"role": ..., "content": ...}'], counts
    turns: list[Turn] = []
    problems = []
    for number, turn in enumerate(chat, 1):
        try:
            turns += _turn(turn, counts)
        except TypeError as error:
            problems.append(f"turn {number} of the chat: {error}")
    if problems:
        return [], problems, counts
    return _questions(_joined(turns), counts), [], counts


def shared_questions(forget: Mapping[Key, bool], retain: Mapping[Key, bool]) -> tuple[set[Key], set[Key]]:
    """Return the chat questions to leave out of forget and of retain rows, since the other side has them too.

    From both sides those asked alone, while the same question with its turns stays. Example: "Thank you." - "You are
    welcome." ends many chats, and the model should keep it. From the forget rows also those after which a forget chat
    goes on, such as the same greeting: what comes after them is forgotten.

    Args:
        forget: input, output and turns of each forget row, to whether it asks a question of a chat alone.
        retain: the same of the retain rows.
    """
    begun = {(turns[-2][1], turns[-1][1], turns[:-2]) for _, _, turns in forget if len(turns) > 1}
    out = {key for key, alone in forget.items() if key in retain and (alone or key in begun)}
    return out, {key for key, alone in retain.items() if alone and key in forget.keys() - out}


def _turn(turn: Mapping[str, Any], counts: Counter[str]) -> list[Turn]:
    """Return role and text of a turn; if it has no text or its role is unknown, return nothing and count it.

    Raises:
        TypeError: the content is of another type.
    """
    given = str(turn.get("role") or turn.get("from") or "").strip().lower()
    role = _ROLES.get(given)
    if role is None:
        counts[f'turns left out, whose role is unknown ("{given}")'] += 1
        return []
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    text, parts = _text(content)
    calls = role == CALL or any(turn.get(name) for name in ("tool_calls", "function_call")) or "tool_use" in parts
    counts["turns that call a tool"] += calls
    counts["tool results, kept as turns before later questions"] += role == "tool"
    for kind, number in parts.items():
        counts[f'parts left out, since they are not text ("{kind}")'] += number
    if role == CALL or (calls and not text):
        return [(CALL, "")]
    if not text:
        counts["turns left out, since they hold no text"] += 1
    return [(role, text)] if text else []


def _text(content: Any) -> tuple[str, Counter[str]]:
    """Return the text of a turn's content, and the types of its parts that are not text."""
    others: Counter[str] = Counter()
    if content is None or isinstance(content, str):
        return (content or "").strip(), others
    if not isinstance(content, list):
        raise TypeError("its content is neither text nor a list of parts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
        else:
            others[str(part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__)] += 1
    return "\n".join(texts).strip(), others


def _joined(turns: list[Turn]) -> list[Turn]:
    """Join consecutive turns of the user, and of the assistant, by a blank line."""
    joined: list[Turn] = []
    for role, group in groupby(turns, key=lambda turn: turn[0]):
        same = list(group)
        joined += [(role, "\n\n".join(text for _, text in same))] if role in _JOINED else same
    return joined


def _questions(turns: list[Turn], counts: Counter[str]) -> list[Item]:
    """Return the questions of joined turns, and count the turns that are in no question."""
    items: list[Item] = []
    used = 0  # turns up to here are in an item
    users = [i for i, (role, _) in enumerate(turns) if role == "user"]
    for i, after in pairwise([*users, len(turns)]):
        answers = [(j, text) for j, (role, text) in enumerate(turns[i + 1 : after], i + 1) if role == "assistant"]
        if not answers:
            continue
        used = answers[-1][0] + 1
        answer = "\n\n".join(text for _, text in answers)
        before = tuple(turn for turn in turns[:i] if turn[0] != CALL)
        items.append(Item("qa", turns[i][1], answer, turns=before))
        items += [Item("qa", turns[i][1], answer, ALONE)] if before else []
    for role, _ in turns[used:]:
        counts[f"turns of the {role} that are in no row"] += role != CALL
    return items
