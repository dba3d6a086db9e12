"""Tries of `forget`: what a model is judged by, what the next try changes, and which weights win."""

import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from lume_tasks.data.source import Data
from lume_tasks.errors import DataError
from lume_tasks.metrics.swap import SwapResult
from lume_unlearn.checks import restored
from lume_unlearn.data.rows import as_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.forget import forget as forget_module
from lume_unlearn.forget import tries
from lume_unlearn.forget.estimates import Estimates, default_steps
from lume_unlearn.forget.forget import tries_before
from lume_unlearn.forget.settings import Setting, first_setting, next_setting
from lume_unlearn.forget.signals import Judge, Signals, without_long
from lume_unlearn.methods.npo import NPO
from lume_unlearn.methods.swap import Swap
from tests.unlearn.test_persons import FORGET, RETAIN


def signals(known=0, kept=12, bound=2.0, **swap):
    found = SwapResult(**{"leak": 0.4, "avoided": 0.6, "factor": 1.0, "low": 1.0, "high": 1.0} | swap)
    return Signals(known=known, rows=4, kept=kept, retain=12, swap=found, bound=bound)


def test_the_next_setting_follows_from_what_went_wrong():
    setting = Setting(1e-3, 2.0, 4)
    halved = Setting(5e-4, 4.0, 4)
    assert next_setting(setting, None)[0] == halved
    assert next_setting(setting, signals(kept=10, known=3))[0] == halved  # damage comes first
    assert next_setting(setting, signals(known=3), cut=True)[0] == replace(halved, continued=True)
    assert next_setting(setting, signals(known=1))[0] == Setting(1e-3, 2.0, 6, continued=True)
    assert next_setting(setting, signals(kept=11))[0] == halved  # 92 %: enough for a verdict, but some are lost
    assert next_setting(setting, signals(leak=0.01))[0] == Setting(5e-4, 2.0, 2, continued=True)
    assert next_setting(setting, signals(leak=0.99, avoided=0.01))[0] == Setting(5e-4, 2.0, 4)
    # No doubt, but the interval of the factor is wider than a verdict allows.
    assert next_setting(setting, signals(leak=0.6, avoided=0.4, high=2.2))[0] == Setting(5e-4, 2.0, 2, continued=True)
    assert first_setting(135_000_000, steps=100) == Setting(1e-3, 4.0, 100)
    assert first_setting(1_350_000_000, steps=5).learning_rate == pytest.approx(1e-3 / 10**0.5)
    assert first_setting(10_000, steps=5) == Setting(5e-3, 4.0, 32)
    assert first_setting(135_000_000, steps=5, tuning="full") == Setting(1e-4, 4.0, 32)


def test_a_try_takes_steps_by_the_rows_and_is_judged_in_its_middle_and_at_its_end():
    rows = as_rows([{"input": f"What is thing {number}?", "output": "X77"} for number in range(5)])
    assert default_steps(Swap(), rows) == 10  # 16 times 5 rows, 8 a step
    assert default_steps(NPO(), rows) == 1  # 4 epochs of 5 rows, 32 a step
    for steps, expected in ((33, {16, 33}), (32, {16, 32}), (1, {0, 1})):
        assert {step for step in range(steps + 1) if tries.due(step, steps, 2)} == expected


def test_right_guesses_are_something_to_forget_if_the_swap_test_ties_them_to_the_person():
    judge = Judge(None, None, None, {}, known={"forget": frozenset(), "retain": frozenset("r")})
    assert "knows none of these rows" in judge.nothing_known()
    assert replace(judge, known={"forget": frozenset("f")}).nothing_known() == ""
    guessed = replace(judge, guessed=frozenset("abc"))
    for tied in (None, signals(leak=0.2).swap):
        assert "answers 3 of these rows right, but perhaps by chance" in replace(guessed, tied=tied).nothing_known()
    assert replace(guessed, tied=signals(leak=0.01).swap).nothing_known() == ""


def test_no_rows_to_keep_are_not_called_too_long():
    with pytest.raises(DataError, match="no rows to keep"):
        without_long(None, None, Data(as_rows(FORGET), []), True, print)


def test_a_request_whose_rows_name_nobody_says_that_there_is_no_swap_test(capsys):
    known = {"forget": frozenset("f"), "retain": frozenset("r")}
    judge = Judge(None, Data(as_rows(FORGET), as_rows(RETAIN)), None, {}, known=known)
    options = {"seed": 0, "chat": True, "batch_size": 1}
    given = {"load": {"before": lambda: (None, None)}, "data": judge.data, "options": options}
    request = SimpleNamespace(**given, progress=forget_module.Progress())
    with mock.patch.multiple(forget_module, without_long=lambda *_: judge.data, judge_of=lambda *_, **__: judge):
        assert forget_module.Request.look(request) is judge
    assert "no swap test: no forget row names somebody" in capsys.readouterr().err


def test_signals_prefer_an_intact_model_then_few_rows_known_then_no_doubt():
    worst, *others, best = sorted(
        [
            signals(),
            signals(kept=11),
            signals(low=0.45, kept=12),
            signals(leak=0.02),
            signals(known=1, kept=12),
            signals(kept=5),
        ],
        key=lambda one: one.order,
    )
    assert worst == signals(kept=5)
    assert others == [signals(known=1), signals(leak=0.02), signals(low=0.45), signals(kept=11)]
    assert best == signals()
    assert [one.good for one in (worst, *others, best)] == [False, False, False, False, False, True]
    near, far = replace(signals(factor=0.95), kept=39, retain=40), replace(signals(factor=0.85), kept=40, retain=40)
    assert near.order > far.order  # 0.1 and 0.2 nats a token from invented persons
    assert signals(high=2.2).excess == 0.1  # log 2.2 / 2
    assert signals(low=0.4, high=2.5, bound=None).good
    assert signals(low=0.25, high=1.4, bound=5.4).good
    assert replace(signals(), swap=None).good  # nobody is named, so there is no swap test
    for one in (signals(leak=0.02), replace(signals(), swap=None)):
        assert restored(Signals, json.loads(json.dumps(asdict(one)))) == one


def test_more_tries_go_on_where_a_verdict_was_not_gone(tmp_path):
    """The first try was good by its signals; `rejected` says that a verdict saw more."""
    setting = Setting(1e-3, 2.0, 4)
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir(parents=True)
        save_file({"weight": torch.ones(2)}, folder / tries.WEIGHTS)
    kept = {1: tries.Try(1, setting, {4: signals()})}
    with (
        mock.patch.multiple(tries, copied_weights=lambda model: {}, set_weights=lambda *_: None),
        mock.patch.multiple(
            tries.Tries,
            _kept=lambda self, number: kept.get(number),
            _trained=lambda self, number, one: tries.Try(number, one, {one.steps: signals(factor=0.9)}),
        ),
    ):
        for rejected, numbers in ((0, [1]), (1, [1, 2])):
            tried = tries.Tries(None, None, None, None, None, tmp_path, 0, print, rejected=rejected)
            done = tried.carried_out(setting, 5, lambda seconds: True)
            assert [one.number for one in done] == numbers
            assert tried.load_best(done) is done[-1]
    assert done[1].setting == Setting(1e-3, 2.0, 2, continued=True)
    assert done[0].setting == setting
    (tmp_path / "tries.json").write_text("[{}]")
    assert tries_before(tmp_path) == 0  # it was gone
    (tmp_path / "tries" / "2").mkdir(parents=True)  # begun after the verdict, so not judged by it
    assert tries_before(tmp_path) == 1


def test_estimate_of_a_short_request_is_not_zero_minutes():
    said = Estimates(one_try=6, verdict=12, retraining=900).line(tries=2, base=True)
    assert said == "about 0.3 to 0.4 minutes: 0.1 for each of up to 2 tries, 0.2 for the verdict"
    assert Estimates(60, 60, 900).line(0, True) == "about 16 minutes: 15 for retraining, 1.0 for the verdict"


def test_a_row_whose_answer_is_completed_from_its_beginning_counts_as_known(monkeypatch):
    known = {"forget": frozenset("abcd"), "retain": frozenset("r")}
    judge = Judge(None, None, None, {}, known, strengths=dict.fromkeys("abcd", 1.0))
    monkeypatch.setattr(Judge, "answered", lambda self, model: {"forget": {"a"}, "retain": {"r"}})
    monkeypatch.setattr(Judge, "swap", lambda self, model: None)
    monkeypatch.setattr(Judge, "extraction", lambda self, model: {"b": 0.6, "c": 0.5, "d": 0.1})
    assert judge.signals(None).known == 2  # a is given away, b completed


@pytest.mark.parametrize("tuning", ["last:99", "modules:nothing", "modules:("])
def test_weights_that_the_model_does_not_have_are_refused_before_it_is_scored(tuning, model, tokenizer, tmp_path):
    given = (model, tokenizer, FORGET, RETAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forget_module, "without_long", lambda *_: pytest.fail("scored"))
        with pytest.raises(ConfigError, match=f"^--tuning {re.escape(tuning)}: "):
            forget_module.forget(*given, tuning=tuning, output=tmp_path)
        with pytest.raises(pytest.fail.Exception, match="scored"):
            forget_module.forget(*given, tuning="last:1", output=tmp_path)  # the same folder
