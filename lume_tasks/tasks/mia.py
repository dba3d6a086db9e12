"""The task ``lume_mia``: all attacks that the backend's answers allow, from one request per document.

In the sample log each metric of a document is ``[member, score]``; a higher score means more likely a member. The loss
attack's score is minus the document's mean token loss. ``mia_gap``, ``s_mia``, ``privleak`` and ``distance_*`` add the
reference model's score. ``members_unlearned`` is the share of members among the forget rows of ``lume_split``.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset

from lume_tasks.data import locate, published
from lume_tasks.data.files import read_rows
from lume_tasks.data.rows import SPLITS, Row, completion_texts
from lume_tasks.errors import DataError, first_few, log
from lume_tasks.metrics import aggregate, attacks, intervals
from lume_tasks.metrics.token_scores import TokenScores
from lume_tasks.tasks.base import LumeTask, Metrics, alternate, load_tokenizer
from lume_tasks.tasks.memorization import LONGEST_TOKEN
from lume_tasks.tasks.reference import OPTION, Doc, reference_samples

ON_LIKELIHOODS = ("loss", "zlib", "min_k", "min_k_plus_plus")
"""Attacks that need neither gradients nor a reference model."""
ATTACKS = (*ON_LIKELIHOODS, "gradnorm", "reference")
FRACTIONS = {"lume_min_k": 0.2, "lume_min_k_plus_plus": 0.2}  # the papers' values; MUSE uses 0.4

_TOKEN_OPTIONS = (*FRACTIONS, "gradnorm", OPTION)  # metadata or model arguments whose metrics need TokenScores

Item = tuple[bool, float]  # member?, score
PairItem = tuple[bool, float, float]  # member?, score, the reference model's score


def split_document(tokenizer: Any, document: str) -> tuple[str, str, int]:
    """Split a document into (context, continuation, number of scored tokens) for one ``loglikelihood`` request.

    The benchmark's loss is minus the mean log-probability of the scored tokens: the mean over tokens 2..n, with nothing
    before the first token (a causal LM called with ``labels = input_ids``). If the tokenizer adds a BOS, the context is
    empty, and the harness puts that BOS there. If not, the context is the text of the first token: for an empty context
    the harness would insert a BOS or EOS, which the benchmark never shows the model.

    Raises:
        ValueError: no such split exists; the message does not name the document.
    """
    ids = tokenizer.encode(document)
    if len(ids) < 2:
        raise ValueError("it has fewer than two tokens, so there is nothing to predict")
    plain = tokenizer.encode(document, add_special_tokens=False)
    if tokenizer.bos_token_id is not None and ids == [tokenizer.bos_token_id, *plain]:
        if plain[0] == tokenizer.bos_token_id:
            raise ValueError("it starts with the text of the tokenizer's BOS, which the harness would not score")
        return "", document, len(plain)
    if ids != plain:
        raise ValueError(
            "the tokenizer adds special tokens other than a BOS, and the harness would score them differently"
        )
    for end in range(1, min(len(document), LONGEST_TOKEN) + 1):
        context = document[:end]
        # The harness moves white space at the end of a context into the continuation.
        if context == context.rstrip() and tokenizer.encode(context) == ids[:1]:
            return context, document[end:], len(ids) - 1
    raise ValueError("its first token is white space or part of a character, which the harness cannot use as a context")


def mia_requests(tokenizer: Any, documents: Mapping[str, list[str]]) -> dict[str, list[Doc]]:
    """Return a request for each document of each class ("member", "nonmember"); ``number`` is the document's line.

    A warning counts the documents that cannot be scored exactly, which are left out.

    Raises:
        DataError: there are such documents in the published LUME, whose scores need them all, or a class has no other.
    """
    requests: dict[str, list[Doc]] = {name: [] for name in documents}
    faults = []
    for name, texts in documents.items():
        for number, text in enumerate(texts, 1):
            try:
                split = split_document(tokenizer, text)
            except ValueError as error:
                faults.append(f"  {name} document {number}: {error}")
                continue
            doc = dict(zip(("context", "continuation", "scored_tokens"), split, strict=True))
            requests[name].append(doc | {"member": name == "member", "number": number})
    keys = ([name == "member", text] for name in documents for text in documents[name])
    if faults and (not all(requests.values()) or published.documents_digest(keys) == published.MIA):
        head = "lume_mia cannot score these documents exactly with this tokenizer; use another model or documents:"
        raise DataError("\n".join([head, *first_few(faults, 10)]))
    if faults:
        head = f"lume_mia: {len(faults)} documents are left out, since this tokenizer cannot score them exactly:"
        log.warning("%s", "\n".join([head, *first_few(faults, 3)]))
    return requests


def fractions(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of tokens for Min-K% and Min-K%++; ``DataError`` if one is not in (0, 1]."""
    given = {name: metadata.get(name, default) for name, default in FRACTIONS.items()}
    for name, value in given.items():
        if not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise DataError(f"metadata {name} has to be a share of a document's tokens, in (0, 1], not {value!r}")
    return given


def documents(**metadata: Any) -> dict[str, Dataset]:
    """Return one request per document, alternating classes, with reference scores if metadata names results."""
    min_k = fractions(metadata)["lume_min_k"]
    split, data = metadata.get("lume_split", "all"), metadata.get("lume_data")
    if data is None:
        directory = locate.data_dir(metadata.get("lume_data_dir"))
        members, nonmembers = locate.load_mia(directory)
        forget = forget_rows(directory, split)
    else:
        members, nonmembers, forget = data.members, data.nonmembers, data.forget
        if not (members and nonmembers):
            raise DataError("lume_mia: the data in memory has no members or no nonmembers; give lists of texts")
    docs = alternate(*mia_requests(load_tokenizer(metadata), {"member": members, "nonmember": nonmembers}).values())
    if forget is not None:
        add_unlearned(docs, forget, split)
    if metadata.get(OPTION) is not None:
        add_reference(docs, metadata, min_k)
    return {"test": Dataset.from_list(docs)}


def forget_rows(directory: Path, split: str) -> list[Row] | None:
    """Read the forget rows of a split; if there are none, warn and return None: the attacks do not need them."""
    try:
        path = locate.side_file(directory, "forget", split)
    except DataError as error:
        if split not in ("all", *SPLITS):
            raise
        log.warning("lume_mia: no members_unlearned, which needs the forget rows: %s", error)
        return None
    return read_rows(path)


def add_unlearned(docs: Sequence[Doc], rows: Sequence[Row], split: str) -> None:
    """Add ``unlearned`` to the documents: whether a member is among the forget rows, None for non-members."""
    forget = completion_texts(rows)
    for doc in docs:
        doc["unlearned"] = text_key(doc)[1].strip() in forget if doc["member"] else None
    found = [doc["unlearned"] for doc in docs if doc["member"]]
    if not all(found):
        log.warning(
            "lume_mia: only %d of the %d member documents are among the forget rows of split %s. A model that "
            "unlearned these rows need not forget the other documents, so the attack says little about it: unlearn "
            "rows that hold them (in LUME: split train or all).",
            *(sum(found), len(found), split),
        )


def add_reference(docs: Sequence[Doc], metadata: Mapping[str, Any], min_k: float) -> None:
    """Add ``reference_loss`` to the documents and, if the reference results have it, ``reference_min_k``.

    Raises:
        DataError: the results cannot be read, or are of other documents, another version or another ``lume_min_k``.
    """
    samples, theirs = reference_samples(docs, metadata, "lume_mia", text_key, lambda _: "loss_auc")
    path, their_min_k = metadata[OPTION], theirs.get("lume_min_k", FRACTIONS["lume_min_k"])
    with_min_k = all("min_k_auc" in sample for sample in samples)
    if not with_min_k:
        log.warning("lume_mia: no privleak: %s holds no Min-K%% scores, which --model lume-hf gives", path)
    elif their_min_k != min_k:
        fault = f"{path} was run with lume_min_k {their_min_k}, this run has {min_k}"
        raise DataError(f"{OPTION}: {fault}; score both with the same lume_min_k")
    for doc, sample in zip(docs, samples, strict=True):
        doc["reference_loss"] = -float(sample["loss_auc"][1])
        if with_min_k:
            doc["reference_min_k"] = float(sample["min_k_auc"][1])


def text_key(doc: Mapping[str, Any]) -> tuple[bool, str]:
    """Return class and text, which identify a document whatever the tokenizer."""
    return doc["member"], doc["context"] + doc["continuation"]


def result(doc: Doc, results: Sequence[tuple[float, bool]], shares: Mapping[str, float] = FRACTIONS) -> dict[str, Any]:
    """Return the item of each metric for one document, for the attacks that the answer allows."""
    scores = scores_of(doc, results[0][0], shares)
    member = doc["member"]
    values: dict[str, Any] = {}
    for attack, score in scores.items():
        values |= {f"{attack}_{summary}": (member, score) for summary in SUMMARIES}
    values["mia_score"] = member, scores["loss"]
    if "unlearned" in doc:
        values["members_unlearned"] = None if doc["unlearned"] is None else float(doc["unlearned"])
    if "reference_loss" in doc:
        pair = member, scores["loss"], -doc["reference_loss"]
        values["mia_gap"] = values["s_mia"] = pair
        values["distance_member_loss"] = pair if member else None
        values["distance_nonmember_loss"] = None if member else pair
    if "reference_min_k" in doc and "min_k" in scores:
        values["privleak"] = member, scores["min_k"], doc["reference_min_k"]
    return values


def scores_of(doc: Doc, answer: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Return the score of each attack that the answer and the document allow; see ``result``."""
    tokens = doc["scored_tokens"]
    scores = {
        "loss": attacks.loss(answer, tokens),
        "zlib": attacks.zlib(answer, tokens, doc["context"] + doc["continuation"]),
    }
    if "reference_loss" in doc:
        scores["reference"] = attacks.reference(answer, tokens, doc["reference_loss"])
    if not isinstance(answer, TokenScores):
        return scores
    if len(answer.logprobs) != tokens:
        raise DataError(
            f"lume_mia: the model scored {len(answer.logprobs)} tokens of document {doc['number']}, which has {tokens} "
            "with the tokenizer in metadata: name the model's own there"
        )
    scores["min_k"] = attacks.min_k(answer.logprobs, shares["lume_min_k"])
    if answer.mean is not None and answer.variance is not None:
        share = shares["lume_min_k_plus_plus"]
        scores["min_k_plus_plus"] = attacks.min_k_plus_plus(answer.logprobs, answer.mean, answer.variance, share)
    if answer.grad_norm is not None:
        scores["gradnorm"] = attacks.gradnorm(answer.grad_norm)
    return scores


@lru_cache(maxsize=1)  # the harness asks for both ends one after the other
def interval(items: tuple[Item, ...]) -> tuple[float, float]:
    """Compute the 95 % interval of an attack's AUC, from resampled documents."""
    return intervals.percentiles(attacks.resampled_aucs(*_columns(items)))


# Functions rather than lambdas: the harness may pickle them for its intervals.
def auc(items: Sequence[Item]) -> float:
    """Compute the AUC of an attack; NaN if one class is absent."""
    return attacks.auc(*_columns(items))


def auc_low(items: Sequence[Item]) -> float:
    """Compute the lower end of the AUC's 95 % interval, from resampled documents."""
    return interval(tuple(items))[0]


def auc_high(items: Sequence[Item]) -> float:
    """Compute the upper end of the AUC's 95 % interval, from resampled documents."""
    return interval(tuple(items))[1]


def tpr_at_1(items: Sequence[Item]) -> float:
    """Compute the true-positive rate at a false-positive rate of at most 1 %."""
    return attacks.tpr_at(0.01, *_columns(items))


def tpr_at_5(items: Sequence[Item]) -> float:
    """Compute the true-positive rate at a false-positive rate of at most 5 %."""
    return attacks.tpr_at(0.05, *_columns(items))


SUMMARIES = {"auc": auc, "auc_low": auc_low, "auc_high": auc_high, "tpr_at_1": tpr_at_1, "tpr_at_5": tpr_at_5}


def mia_score(items: Sequence[Item]) -> aggregate.Score:
    """Compute ``1 - 2 |AUC - 0.5|`` of the loss attack; NaN and a warning if there is no AUC."""
    value = aggregate.Score(aggregate.mia_score(auc(items)))
    if math.isnan(value):
        log.warning("lume_mia: the attacks have no value: only one class was scored (drop --limit), or a loss is NaN")
    return value


def privleak(items: Sequence[PairItem]) -> float:
    """Compute ``attacks.privleak`` of both models' Min-K% AUCs, on the same documents."""
    return attacks.privleak(*_both_aucs(items))


def mia_gap(items: Sequence[PairItem]) -> float:
    """Compute ``AUC - AUC_ref`` of the loss attack: 0 is ideal, above 0 the model knows members better."""
    own, reference = _both_aucs(items)
    return own - reference


def s_mia(items: Sequence[PairItem]) -> float:
    """Compute ``attacks.s_mia`` of both models' AUCs of the loss attack, on the same documents."""
    return attacks.s_mia(*_both_aucs(items))


def loss_distance(items: Sequence[PairItem | None]) -> float:
    """Compute the Kolmogorov-Smirnov distance of both models' losses of the same documents; NaN if there are none."""
    from scipy.stats import ks_2samp

    pairs = [item[1:] for item in items if item is not None]
    return float(ks_2samp(*zip(*pairs, strict=True)).statistic) if pairs else math.nan


def _columns(items: Sequence[Item]) -> tuple[list[float], list[bool]]:
    return [score for _, score in items], [member for member, _ in items]


def _both_aucs(items: Sequence[PairItem]) -> tuple[float, float]:
    members = [member for member, _, _ in items]
    own, theirs = [score for _, score, _ in items], [score for _, _, score in items]
    return attacks.auc(own, members), attacks.auc(theirs, members)


def _metrics() -> Metrics:
    table: dict[str, Any] = {"mia_score": (mia_score, True), "members_unlearned": (aggregate.mean, None)}
    for attack in ATTACKS:
        for summary, aggregation in SUMMARIES.items():
            table[f"{attack}_{summary}"] = aggregation, False
    table |= {f"distance_{kind}_loss": (loss_distance, False) for kind in ("member", "nonmember")}
    return table | {"mia_gap": (mia_gap, None), "s_mia": (s_mia, True), "privleak": (privleak, None)}


class MiaTask(LumeTask):
    """A task whose metrics depend on the backend's answers: sums alone, or ``TokenScores``."""

    metrics = _metrics()

    def document(self, doc: Doc) -> list[Any]:
        """Return the fields that the digest covers: class and text."""
        return list(text_key(doc))

    def process_results(self, doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        """Call the YAML's result function with the options that metadata gives."""
        if not callable(self.config.process_results):  # --predict_only replaces it
            return super().process_results(doc, results)  # type: ignore[no-any-return]
        return dict(self.config.process_results(doc, results, fractions(self.config.metadata)))

    def apply_filters(self) -> Any:
        """Filter the answers; warn if metadata asks for metrics that need per-token values and the backend has none."""
        filtered = super().apply_filters()
        asked = [option for option in _TOKEN_OPTIONS if self.config.metadata.get(option)]
        if asked and not isinstance(self.instances[0].resps[0][0], TokenScores):
            log.warning(
                "lume_mia: %s needs per-token values for some metrics, and this backend (or the one that wrote the "
                "cache) gives none. Use --model lume-hf (for gradnorm with gradnorm=true among the --model_args).",
                ", ".join(asked),
            )
        return filtered
