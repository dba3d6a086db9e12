"""The encoded rows of a training, and the packs of one optimiser step."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lume_tasks.data.rows import Row
from lume_tasks.errors import DataError, first_few
from lume_unlearn.checks import require_list
from lume_unlearn.data.contexts import Context, asked, reworded
from lume_unlearn.data.documents import whole_text
from lume_unlearn.data.encode import Encoder, Tokens
from lume_unlearn.data.imitations import Persons
from lume_unlearn.data.packs import SIDES, Pack, TeacherCache, empty_pack, joined, pack_rows
from lume_unlearn.data.persons import own_tokens, own_words
from lume_unlearn.data.schedule import Step
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.base import Method, Pair, Side, TokenCounts
from lume_unlearn.methods.refusals import refusals
from lume_unlearn.methods.swap import ITSELF

QUANTILES = (0.25, 0.75)
"""Lowest and highest quantile of a row. With 0 and 1, the swap test tied some rows to their person
(results/tried.md)."""


@dataclass(eq=False)
class Examples(Dataset[dict[str, Any]]):
    """The encoded forget, alternative and retain rows; an item is everything that one optimiser step needs."""

    forget: Sequence[Tokens]
    """A row with several alternatives or controls is repeated, once for each."""
    retain: Sequence[Tokens]
    alternative: Sequence[Tokens] = ()
    """Empty, or for each of ``forget`` the same prompt with another answer."""
    control: Sequence[Tokens] = ()
    """Empty, or each of ``forget`` about an invented person."""
    _: KW_ONLY
    ids: Mapping[str, Sequence[str]]
    """Ids of the forget and of the retain rows, for messages."""
    reads_forget: bool = True
    """Whether the model in training reads the forget rows (some methods read only the alternatives)."""
    reference: dict[Tokens, Tensor] = field(default_factory=dict)
    """(labelled tokens,) reference NLL of the rows for which the method needs it; `setup.compute_reference` sets it. If
    the method needs invented persons: 1 for tokens of own words, else 0 (see `persons.own_tokens`)."""
    contexts: dict[Tokens, list[Context]] = field(default_factory=dict)
    """If the method needs invented persons: for each of ``alternative``, the tokens after which the reference model
    gave that answer, or predicts its tokens."""
    teacher: dict[Tokens, TeacherCache] = field(default_factory=dict)
    """Hidden states of the counterfactual teacher for each forget row, if the method has one; if it needs invented
    persons, those of the reference model (or base model) in each of ``contexts``."""
    quantiles: dict[Tokens, float] = field(default_factory=dict)
    """If the method needs invented persons: the quantile of each forget row. They are spread evenly between
    `QUANTILES`, also among consecutive rows, such as those of a person."""
    texts: frozenset[Tokens] = frozenset()
    """Forget rows whose controls are texts that the model never saw."""

    @property
    def unseen(self) -> list[Tokens]:
        """The controls of ``texts``, each once."""
        pairs = zip(self.forget, self.control, strict=False)
        return list(dict.fromkeys(control for row, control in pairs if row in self.texts))

    def __len__(self) -> int:
        """Return the number of forget rows."""
        return len(self.forget)

    def __getitem__(self, step: Step) -> dict[str, Any]:
        """Return a step, its packs in this process, counts and ids of its rows, and the tokens that Trainer counts."""
        packs = [self.pack(pairs) for pairs in step.micro_batches]
        counts = {side: [row.scored for row in rows] for side, rows in self.rows(step.pairs).items()}
        tokens = torch.cat([pack.input_ids for pack in packs])
        ids = [self.ids[side][i] for side in ("forget", "retain") for pair in step.pairs for i in getattr(pair, side)]
        return {"step": step, "packs": packs, "counts": TokenCounts(**counts), "ids": ids, "input_ids": tokens}

    @property
    def sides(self) -> dict[Side, Sequence[Tokens]]:
        """The rows that the model in training reads, by side."""
        forget = self.forget if self.reads_forget else ()
        return {"forget": forget, "control": self.control, "alternative": self.alternative, "retain": self.retain}

    def rows(self, pairs: Sequence[Pair]) -> dict[Side, list[Tokens]]:
        """Return the rows of some pairs, by side."""
        forget = [index for pair in pairs for index in pair.forget]
        retain = [index for pair in pairs for index in pair.retain]
        used = {"forget": forget, "control": forget, "alternative": forget, "retain": retain}
        return {side: [rows[index] for index in used[side]] if rows else [] for side, rows in self.sides.items()}

    def lengths(self, pair: Pair) -> list[int]:
        """Return the number of tokens of each row of a pair."""
        return [len(row.input_ids) for rows in self.rows([pair]).values() for row in rows]

    def pack(self, pairs: Sequence[Pair]) -> Pack:
        """Return the rows of some pairs as one pack; `empty_pack` without pairs."""
        if not pairs:
            return empty_pack()
        sides = self.rows(pairs)
        taught = sides["alternative" if self.contexts else "forget"] if self.teacher else []
        teacher = joined([self.teacher[row] for row in taught]) if taught else None
        quantiles = torch.tensor([self.quantiles[row] for row in sides["forget"]]) if self.quantiles else None
        texts = torch.tensor([row in self.texts for row in sides["forget"]]) if self.texts else None
        read = [row for side in SIDES for row in sides[side]] if self.reference else []
        known = [self.reference.get(row, torch.zeros(row.scored)) for row in read]
        reference = torch.cat(known) if known else torch.zeros(0)
        return replace(pack_rows(sides), reference=reference, teacher=teacher, quantiles=quantiles, texts=texts)


def encoded_examples(
    method: Method,
    encode: Encoder,
    forget: Sequence[Row],
    retain: Sequence[Row],
    alternatives: Mapping[str, Sequence[str]] | None,
    persons: Persons | None = None,
) -> Examples:
    """Encode the rows that a method trains on; a forget row is repeated for each of its alternatives.

    Args:
        method: decides which sides are read.
        encode: encodes rows.
        forget: forget rows.
        retain: retain rows; empty if the loss has no retain term.
        alternatives: other answers by the id of a forget row; refusals are built in, chosen by the method's seed.
        persons: the rows about invented persons; a forget row is repeated for each of its controls.

    Raises:
        ConfigError: the alternatives are no dictionary, or those of a row one text instead of a list.
        DataError: rows that do not fit the model, or a forget row without an alternative.
    """
    if not isinstance(alternatives, Mapping | None):
        raise ConfigError(f"alternatives: give a dictionary of row ids and texts, not a {type(alternatives).__name__}")
    for row_id, texts in (alternatives or {}).items():
        require_list(f"alternatives: {row_id}", texts)
    if persons is not None:
        return _with_persons(encode, forget, retain, persons)
    if method.needs.alternatives == "refusals":
        alternatives = {row.id: [text] for row, text in zip(forget, refusals(forget, method.seed), strict=True)}
    pairs: list[tuple[Row, Row | None]] = [(row, None) for row in forget]
    if method.needs.alternatives:
        missing = [row.id for row in forget if not (alternatives or {}).get(row.id)]
        if missing:
            listed = ", ".join(first_few(missing, 3))
            raise DataError(f"alternatives: {len(missing)} forget rows have none: {listed}; add one for each")
        pairs = [(row, replace(row, output=text)) for row in forget for text in (alternatives or {})[row.id]]
    rows = [row for row, _ in pairs]
    return Examples(
        forget=encode(rows),
        retain=encode(retain),
        alternative=encode([other for _, other in pairs if other is not None]),
        reads_forget=method.needs.forget_rows,
        ids={"forget": [row.id for row in rows], "retain": [row.id for row in retain]},
    )


def _with_persons(encode: Encoder, forget: Sequence[Row], retain: Sequence[Row], persons: Persons) -> Examples:
    from scipy.stats.qmc import Halton, scale  # not at the top: the import takes a second

    answers = forget
    forget = [whole_text(row) if row.id in persons.texts else row for row in answers]
    if persons.texts:
        retain = [whole_text(row) if row.kind == "sc" else row for row in retain]
    repeated = [row for row in forget for _ in persons.controls[row.id]]
    controls = [control for row in forget for control in persons.controls[row.id]]
    imitations = [imitation for row in forget for imitation in persons.imitations[row.id]]
    distinct = list(dict.fromkeys([*repeated, *controls, *answers, *(imitation.row for imitation in imitations)]))
    tokens = dict(zip(distinct, encode(distinct), strict=True))
    words, reference = own_words(forget, retain), {}
    own = [(row, words[row.id]) for row in (*repeated, *answers)]
    for row, control in zip(repeated, controls, strict=True):
        own.append((control, set() if row.id in persons.texts else words[row.id]))
    for row, marked in own:
        if tokens[row] not in reference:
            reference[tokens[row]] = own_tokens(tokens[row], marked, encode.tokenizer)
    encoded = {row.id: tokens[row] for row in answers}
    truths = {key: [*zip(one.targets, reference[one].bool().tolist(), strict=True)] for key, one in encoded.items()}
    contexts: dict[Tokens, list[Context]] = {}
    for imitation, prompt, mark, text in imitations:
        said = tokens[imitation]
        if said in contexts:
            continue
        context = asked(said, prompt or said.prompt, encode.context, truths.get(imitation.id, ()))
        if text:
            original = encode.one(replace(imitation, output=text))
            context = reworded(said, context, asked(original, prompt, encode.context))
        if mark is not None:
            kept = encode.tokenizer.eos_token_id if mark == ITSELF else None  # a text may end as before
            context = replace(context, substitute_ids=tuple(one if one == kept else mark for one in said.targets))
        contexts[said] = [context]
    even = Halton(1, scramble=False).random(len(forget) + 1)[1:]  # 1/2, 1/4, 3/4, 1/8, ...
    quantiles = scale(even, *QUANTILES)[:, 0].tolist()
    return Examples(
        forget=[tokens[row] for row in repeated],
        retain=encode(retain),
        alternative=[tokens[imitation.row] for imitation in imitations],
        control=[tokens[row] for row in controls],
        ids={"forget": [row.id for row in repeated], "retain": [row.id for row in retain]},
        reference=reference,
        contexts=contexts,
        quantiles={tokens[row]: quantile for row, quantile in zip(forget, quantiles, strict=True)},
        texts=frozenset(tokens[row] for row in forget if row.id in persons.texts),
    )
