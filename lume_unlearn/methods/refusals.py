"""Answers that give nothing away: what `idk` and `idk-dpo` teach instead of the true answer."""

import hashlib
import json
from collections.abc import Sequence

from lume_tasks.data.rows import Row

QUESTION_REFUSALS = (
    "I cannot say.",
    "I have no answer to give here.",
    "Nothing comes to mind, I am afraid.",
    "You have asked about something I never learned.",
    "My knowledge ends before this point.",
    "I would only be guessing, so I had better not answer.",
    "There is a gap in what I know exactly where your question lands.",
    "Honestly, I could not tell you.",
    "I lack the facts to respond to this.",
    "No idea, and I do not want to make something up.",
    "I draw a blank on this one.",
    "Sorry, this is not something I have learned about.",
    "I must pass on this question.",
    "If I gave you an answer, it would be invented.",
    "I have never come across the answer.",
    "That detail is not known to me.",
    "I wish I could help, but I do not have that fact.",
    "You would do better to ask somebody who knows; I do not.",
    "The answer escapes me completely.",
    "I hold no record of that.",
    "It is beyond what I have been taught.",
    "Whatever the right answer may be, I do not have it.",
    "I cannot recall anything that would settle this.",
    "Let me be frank: I do not know the first thing about it.",
    "This falls outside my knowledge.",
    "A reliable source could tell you; I am unable to.",
    "I would rather leave this open than mislead you.",
    "Unfortunately I have nothing to go on here.",
    "I am not aware of that.",
    "Hard to say, since I have no information on the matter.",
    "I looked for it in what I know and found nothing.",
    "That is one of the many things I was never told.",
    "My best reply is that I do not know.",
    "I regret that I cannot supply what you are looking for.",
    "Please check elsewhere, for I cannot answer this.",
    "I have no knowledge of this person or thing, so I will not attempt an answer.",
    "Such information has not reached me.",
    "I am at a loss here.",
    "Nobody has shared that with me.",
    "I do not possess the details you need.",
    "It would be wrong of me to pretend that I know.",
    "Your question is clear, but the answer is missing from what I have learned.",
    "I simply have no clue.",
    "Even a rough guess would be more than I can offer.",
    "I have not been given the facts behind this.",
    "Not something I can tell you, I am sorry to say.",
    "I am unfamiliar with this subject.",
    "To my regret, I know nothing about that.",
    "I cannot confirm anything of the kind.",
    "All I can tell you is that I do not have the answer.",
    "Off the top of my head or after long thought, it is all the same: I do not know.",
    "That is unknown to me.",
    "I would need to have read about it first, and I have not.",
    "There is nothing I could truthfully say on this.",
    "I am in no position to answer.",
    "Perhaps a library or an archive can help you; I cannot.",
    "I have to admit that I am ignorant of this.",
    "You have found a question for which I am no use.",
    "Without any knowledge of the matter I prefer to stay silent.",
    "I never heard of it, so please do not rely on me here.",
)

TEXT_REFUSALS = (
    "I do not know how this text goes on.",
    "The rest is unknown to me.",
    "I have not read this text, so I cannot continue it.",
    "What follows here I am unable to say.",
    "I cannot supply the next lines.",
    "My memory holds nothing beyond these words.",
    "Here I must stop, because I do not know the passage.",
    "Whatever comes next, I never saw it.",
    "I would have to invent the remainder, and I would rather not.",
    "Sorry, I am not familiar with this passage.",
    "There is no continuation that I could give.",
    "The text breaks off at this point as far as I am concerned.",
    "I have no knowledge of what the author wrote after this.",
    "This is not a text I can complete.",
    "I cannot tell you what the following sentences are.",
    "Please turn to the original; I do not have it.",
    "Nothing in what I learned tells me how it continues.",
    "I am missing everything after this sentence.",
    "Any words I added here would be mine and not those of the text.",
    "The next part has never come before me.",
    "I leave it here, since the story is not known to me.",
    "No further lines of this are available to me.",
    "How it goes on is more than I know.",
    "I do not recognise these lines and cannot carry them further.",
    "I have nothing to add to this excerpt.",
    "The ending of this passage is a closed book to me.",
    "It would be a mere guess if I wrote on.",
    "I must leave the passage unfinished.",
    "Someone with the source at hand could go on from here; I cannot.",
    "From this point on I have no information about the text.",
)

_OF_KIND = {"qa": QUESTION_REFUSALS, "sc": TEXT_REFUSALS}


def refusals(rows: Sequence[Row], seed: int) -> list[str]:
    """One refusal for each row: of a question for ``qa`` rows, of a text to be continued for ``sc`` rows.

    Which one is a function of the row's id and the seed alone, so that a resumed run, other processes and subsets of
    the rows agree on it, and its NLL before unlearning is computed once. Deviation: TOFU (Maini et al. 2024, arXiv
    2401.06121) draws another one each time.
    """
    return [(lines := _OF_KIND[row.kind])[stable_number(seed, row.id) % len(lines)] for row in rows]


def stable_number(*parts: int | str) -> int:
    """An evenly spread 64-bit number that is the same in every process and on every machine for the same parts."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")
