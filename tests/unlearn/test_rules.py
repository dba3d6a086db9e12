"""The rules of a verdict, by hand."""

from dataclasses import replace
from typing import Any

import pytest

from lume_tasks.metrics.swap import SwapResult
from lume_unlearn.audit.rules import (
    Changes,
    Decision,
    Earlier,
    Found,
    Swaps,
    compared,
    completed,
    decide,
    parse_condition,
    unmet,
    upper_limit,
)
from lume_unlearn.errors import ConfigError

FORGET, RETAIN = {"a", "b", "c", "d"}, set("klmnopqrst")
KNOWING = {"forget": FORGET, "retain": RETAIN}
NOTHING: dict[str, set[str]] = {"forget": set(), "retain": set()}
FORGOT = {"forget": set[str](), "retain": RETAIN}


def probe(changes: Changes, forget: str = "", retain: str = "klmnopqrst") -> Found:
    return Found(changes, {"forget": set(forget), "retain": set(retain)}, KNOWING)


PROBES = {"prefix": probe("prompt"), "4-bit": probe("weights")}


def decided(
    before: Any = KNOWING, now: Any = FORGOT, probes: Any = PROBES, strengths: Any = None, **options: Any
) -> Decision:
    return decide(before, now, probes, strengths or {}, **options)


def test_models_are_told_apart() -> None:
    full, some, low = (dict.fromkeys(FORGET, (1.0, value)) for value in (1.0, 0.9, 0.2))
    unchanged = decided(now=KNOWING, strengths=full)
    assert (unchanged.status, unchanged.reasons[0]) == (
        "not gone",
        "4 forget rows are given away on their original prompts.",
    )
    refusing = decided(strengths=some)
    assert refusing.status == "not gone"
    assert refusing.reasons == ["4 of 4 answers are completed from about as short a beginning as before."]
    assert decided(strengths=low).status == "gone"
    assert decided(before=FORGOT).status == "cannot be told"
    assert decided(before={"forget": FORGET, "retain": set()}, now=NOTHING).status == "cannot be told"
    assert decided(before=NOTHING, now=KNOWING).status == "not gone"  # --before and --model were swapped
    assert decided(now={"forget": {"x"}, "retain": RETAIN}).status == "not gone"  # a row that is known only now
    assert decided(earlier=[Earlier(0, 3), Earlier(1, 2)]).reasons == ["Earlier request 2: 1 of 2 rows are given away."]


@pytest.mark.parametrize("retain", ["", "klmnopqrst"])
def test_a_leak_in_any_probe_is_a_leak_whatever_the_control_says(retain: str) -> None:
    found = decided(probes=PROBES | {"upper case": probe("prompt", "b", retain)})
    assert (found.status, found.reasons) == ("not gone", ["Rows that are given away in probes: 1 (upper case: 1)."])
    assert found.uninformative == ([] if retain else ["upper case"])


@pytest.mark.parametrize(
    ("probes", "missing"),
    [
        ({}, ["prompt", "weights"]),
        ({"prefix": probe("prompt")}, ["weights"]),
        ({"8-bit": probe("weights"), "leak@2": probe("sampling")}, ["prompt"]),
        ({"8-bit": probe("weights"), "prefix": probe("prompt", retain="klmn")}, ["prompt"]),  # not informative
    ],
)
def test_gone_needs_an_informative_probe_of_the_prompt_and_of_the_weights(
    probes: dict[str, Found], missing: list[str]
) -> None:
    found = decided(probes=probes)
    assert found.status == "cannot be told"
    assert len(found.reasons) == len(missing)
    assert all(f"No probe that changes the {one} " in text for one, text in zip(missing, found.reasons, strict=True))


def test_the_rest_has_an_answer_of_its_own() -> None:
    assert decided(now={"forget": set(), "retain": RETAIN - {"k"}}).kept
    found = decided(now={"forget": set(), "retain": RETAIN - {"k", "l"}})
    assert (found.status, found.kept, found.lost) == ("gone", False, ["k", "l"])
    assert decided(now={"forget": set(), "retain": RETAIN - {"k", "l"}}, keep=0.8).kept
    assert decided(now=NOTHING).status == "cannot be told"


TARGET, OTHERS = SwapResult(0.0001, 1, 4000, 2000, 8000), SwapResult(0.4, 0.6, 1.02, 0.9, 1.2)


@pytest.mark.parametrize(
    ("now", "status", "words"),
    [
        (OTHERS, "gone", "No row is given away"),
        (replace(OTHERS, leak=0.002, factor=2.5, low=1.5, high=4), "not gone", "tied to the persons"),
        (replace(OTHERS, leak=0.002, factor=1.5, low=1.1, high=2), "cannot be told", "a little unlike invented ones"),
        (replace(OTHERS, avoided=0.002, factor=0.3), "not gone", "avoids the right answers"),
        (replace(OTHERS, avoided=0.002, factor=0.7), "cannot be told", "a little unlike invented ones"),
        (replace(OTHERS, low=0.2, high=7.0), "gone", "No row is given away"),  # few rows, a strong tie before
        (replace(OTHERS, high=9.0), "cannot be told", "too coarse"),
    ],
)
def test_the_swap_test_decides(now: SwapResult, status: str, words: str) -> None:
    blind = {"prefix": probe("prompt", retain=""), "4-bit": probe("weights")}
    found = decided(probes=blind, swaps=Swaps(TARGET, now, TARGET))
    assert (found.status, words in found.reasons[0]) == (status, True)


def test_the_bound_is_half_of_what_the_target_shows() -> None:
    weak = SwapResult(0.01, 1, 1.69, 1.4, 2)  # answers that do not depend much on the name: the bound is 1.3
    for factor, status in ((1.4, "not gone"), (1.2, "cannot be told")):
        now = SwapResult(0.01, 1, factor, 1.01, 1.5)
        assert decided(swaps=Swaps(weak, now, TARGET)).status == status
    for high, status in ((1.95, "gone"), (2.05, "cannot be told")):
        assert decided(swaps=Swaps(weak, replace(OTHERS, low=0.8, high=high), TARGET)).status == status


def test_a_difference_needs_a_small_p_value_and_an_interval_beyond_1() -> None:
    for change, words in (
        ({"leak": 0.04, "low": 1.1}, "are likelier"),
        ({"leak": 0.2, "low": 1.1}, "about as likely"),
        ({"leak": 0.04}, "about as likely"),
        ({"avoided": 0.04, "high": 0.9}, "less likely"),
        ({"avoided": 0.2, "high": 0.9}, "about as likely"),
    ):
        assert words in compared(vars(replace(OTHERS, **change)))


def test_the_swap_test_is_no_evidence_without_its_positive_controls() -> None:
    blind = {"prefix": probe("prompt", retain=""), "4-bit": probe("weights")}
    for swaps in (Swaps(OTHERS, OTHERS, TARGET), Swaps(TARGET, OTHERS, OTHERS)):
        assert decided(probes=blind, swaps=swaps).status == "cannot be told"
    tied = replace(OTHERS, leak=0.002, factor=2.5, low=1.5, high=4.0)
    assert decided(swaps=Swaps(TARGET, tied, TARGET, control=tied)).status != "not gone"
    assert decided(swaps=Swaps(TARGET, TARGET, TARGET, control=tied)).status == "not gone"


def test_guesses_and_what_a_control_knows_are_no_evidence() -> None:
    known = {"forget": {"a"}, "retain": RETAIN}
    assert decided(now=known).status == "not gone"
    assert decided(now=known, excused={"a"}).status == "cannot be told"
    assert decided(now=known, excused={"a"}, swaps=Swaps(TARGET, OTHERS, TARGET)).status == "gone"
    assert decided(excused={"a"}).status == "gone"
    assert decided(excused=FORGET).status == "cannot be told"


def test_one_person_of_many_and_names_of_another_kind() -> None:
    assert decided(swaps=Swaps(TARGET, OTHERS, TARGET, persons=1)).status == "not gone"
    tied = replace(OTHERS, leak=0.002, factor=2.1, low=1.1, high=3.9)
    assert decided(swaps=Swaps(TARGET, tied, TARGET)).status == "not gone"
    assert decided(swaps=Swaps(TARGET, tied, TARGET, matched=False)).status == "cannot be told"
    assert decided(swaps=Swaps(TARGET, replace(tied, low=3.0, high=9.0), TARGET, matched=False)).status == "not gone"


@pytest.mark.parametrize(("leaks", "queries", "limit"), [(0, 12, 0.221), (0, 148, 0.020), (1, 12, 0.339), (3, 3, 1)])
def test_upper_limit(leaks: int, queries: int, limit: float) -> None:
    assert upper_limit(leaks, queries) == pytest.approx(limit, abs=5e-4)


def test_requirements() -> None:
    numbers = {"forget_knowledge": 0.25, "retain_knowledge": 0.9}
    assert unmet(["forget_knowledge<=0.3", "retain_knowledge >= 9e-1"], numbers) == []
    assert unmet(["forget_knowledge<=0.05"], numbers) == ["forget_knowledge<=0.05 (is 0.250)"]
    assert unmet(["lume_mia loss_auc>=0.3"], numbers) == [
        "lume_mia loss_auc>=0.3 (no such number; verdict.json lists them)"
    ]
    assert parse_condition("forget_knowledge<=1e-3") == ("forget_knowledge", "<=", 0.001)
    for wrong in ("forget_knowledge<0.05", "a<=1.2.3", "a<=.", "a<=nan"):
        with pytest.raises(ConfigError, match="--require "):
            parse_condition(wrong)


def test_few_completed_answers_may_be_guesses():
    strengths = {"a": (1.0, 0.6), "b": (1.0, 0.5), "c": (0.8, 0.1), "unknown": (1.0, 1.0)}
    assert completed({*"abc"}, strengths) == {"a"}
    assert completed({*"abcde"}, strengths | {"d": (1.0, 0.0), "e": (1.0, 0.0)}) == set()
