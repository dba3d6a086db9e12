"""`lume-unlearn forget`: its parts, and the command on a tiny model that has learned a customer's rows."""

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO

import pytest
import torch
from safetensors.torch import load_file

from lume_tasks.errors import DataError
from lume_unlearn import Swap, forget
from lume_unlearn.cli import main as cli
from lume_unlearn.cli.forget import DATA, rows_of
from lume_unlearn.data.rows import as_rows
from lume_unlearn.errors import ConfigError
from lume_unlearn.forget import forget as forget_module
from lume_unlearn.forget import tries
from lume_unlearn.forget.ledger import LEDGER, ledger_faults
from lume_unlearn.forget.settings import Setting
from lume_unlearn.model.load import load_model, load_tokenizer, lora_config
from lume_unlearn.model.weights import copied_weights
from lume_unlearn.scoring.score import score
from lume_unlearn.training.callbacks.memorised import Memorised
from tests.conftest import loaded_with_adapter, make_model, make_tokenizer, trained_copy
from tests.unlearn.test_persons import FORGET, PERSONS, RETAIN
from tests.unlearn.test_tries import signals


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A model that knows all rows, in a folder with a space."""
    folder = tmp_path_factory.mktemp("models") / "my target"
    tokenizer = make_tokenizer()
    rows = as_rows([*FORGET, *RETAIN])
    trained = trained_copy(make_model(), tokenizer, rows, steps=300, learning_rate=5e-3, loss_on="answer")
    trained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def customers(tmp_path_factory):
    """All rows in one table."""
    path = tmp_path_factory.mktemp("files") / "customers.csv"
    lines = [f'"{row["document"]}","{row["input"]}","{row["output"]}"' for row in [*FORGET, *RETAIN]]
    path.write_text("\n".join(["name,question,answer", *lines]))
    return path


QUICK = ("--probes", "quantised,other_words", "--controls", 39, "--tries", 2)


def forget_words(target, customers, output, person=PERSONS[0]):
    where = ("--forget", customers, "--where", f"name={person}")
    return ("forget", "--model", target, *where, "--output", output, *QUICK)


def weights_of(folder):
    return load_model(str(folder), torch.float32).state_dict()


@pytest.fixture(scope="module")
def once(target, customers, tmp_path_factory):
    """The output folder of one command, and what it printed."""
    output, out, err = tmp_path_factory.mktemp("once") / "out", StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([str(word) for word in forget_words(target, customers, output)])
    assert code in (0, 1, 3, 4), err.getvalue()
    assert "the target knows 4 of 4 forget rows and 12 of 12 retain rows" in err.getvalue()
    return output, out.getvalue()


def test_one_command_forgets_a_person_and_judges_it(once, target, command):
    output, out = once
    model, tokenizer = load_model(str(output / "model"), torch.float32), load_tokenizer(str(output / "model"))
    found = score(model, tokenizer, {"forget": FORGET, "retain": RETAIN})
    assert not any(row.output in found.answers[row.id] for row in as_rows(FORGET))
    assert sum(row.output in found.answers[row.id] for row in as_rows(RETAIN)) >= 10
    assert f"persons found in the rows to forget (number of rows): {PERSONS[0]} (4);" in out
    content = json.loads((output / "verdict.json").read_text())
    assert f"Verdict: {content['status']}" in out
    assert {path.stat().st_mode & 0o777 for path in (output / DATA).glob("*.jsonl")} == {0o600}
    assert content["counts"]["forget"]["before"] == 4
    entries = [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]
    assert PERSONS[0].split()[0] not in (output / LEDGER).read_text()
    assert [entry["status"] for entry in entries] == [content["status"]]
    assert [one["setting"]["steps"] for one in json.loads((output / "tries.json").read_text())] == [32]
    assert (output / "tries").exists() != (content["status"] == "gone" and content["kept"])  # for further tries
    code, _, err = command("forget", "--model", target, "--forget", output / DATA, "--output", output)
    assert (code, "the request there is finished" in err) == (2, True)
    code, _, err = command("audit", "--model", output, "--data", output / DATA, "--output", output / "audit")
    assert (code, f"name {output / 'model'}" in err) == (2, True)
    verify = ("verify", "--verdict", output / "verdict.json", "--model")  # the rows lie beside it
    assert command(*verify, output / "model")[0] == 0
    assert command(*verify, target)[0] == 1
    adapted = load_model(str(output / "adapter"), torch.float32).state_dict()  # names the target
    for name, weight in weights_of(output / "model").items():
        torch.testing.assert_close(adapted[name], weight, rtol=0, atol=1e-5)


def test_verify_names_what_is_damaged_or_missing(once, tmp_path, command):
    output = tmp_path / "copy"
    shutil.copytree(once[0], output, ignore=shutil.ignore_patterns(DATA, "tries"))
    words = ("verify", "--model", output / "model", "--verdict", output / "verdict.json")
    code, _, err = command(*words)
    assert (code, "--data: give the folder with the rows of the request" in err) == (2, True), err
    assert command(*words, "--data", once[0] / DATA)[0] == 0
    (output / LEDGER).unlink()
    code, out, _ = command(*words, "--data", once[0] / DATA)
    assert (code, out.strip()) == (1, f"The ledger {LEDGER} is missing.")
    for text, message in (("[]", "its schema is None"), ('{"schema": 2}', "status is missing")):
        (output / "verdict.json").write_text(text)
        code, _, err = command(*words, "--data", once[0] / DATA)
        assert (code, message in err) == (2, True), err


def test_an_interrupted_command_continues_with_the_same_result(once, target, customers, tmp_path, command):
    uninterrupted, _ = once
    output = tmp_path / "again"
    words = forget_words(target, customers, output)

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    places = ((tries.Watch, "on_step_end"), (tries.Judge, "signals"), (forget_module.Request, "_saved"))
    for place, name in places:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, interrupted)
            assert "give the same command again" in command(*words)[2]
        code, _, err = command(*forget_words(target, customers, output, PERSONS[1]))
        assert (code, "holds a request with other rows" in err) == (2, True)
    assert command(*words)[0] in (0, 1, 3, 4)
    expected = weights_of(uninterrupted / "model")
    assert all(weight.equal(expected[name]) for name, weight in weights_of(output / "model").items())
    verdicts = [json.loads((folder / "verdict.json").read_text()) for folder in (uninterrupted, output)]
    assert verdicts[0]["swaps"] == verdicts[1]["swaps"]


def test_the_next_request_tests_the_persons_of_earlier_ones(once, customers, tmp_path, command):
    first, _ = once
    words = ("forget", "--after", first, "--forget", customers, "--where", f"name={PERSONS[1]}", *QUICK)
    code, out, err = command(*words, "--output", tmp_path / "second")
    assert code in (0, 1, 3, 4), err
    assert 'retain rows left out, since they have a question or a person of an earlier request: 4: "' in out
    assert "Earlier request 1: no sign of it" in out
    entries = [json.loads(line) for line in (tmp_path / "second" / LEDGER).read_text().splitlines()]
    assert ("that request stays open" in out) == (entries[0]["status"] != "gone")
    assert [entry["number"] for entry in entries] == [1, 2]
    content = json.loads((tmp_path / "second" / "verdict.json").read_text())
    assert ledger_faults(entries, content) == []
    assert len(ledger_faults([entries[0] | {"status": "gone, really"}, entries[1]], content)) == 1
    assert len(ledger_faults(entries[1:], content)) == 1
    changed = {"status": "gone, really", "kept": None, "given": 99, "data_sha256": {"forget": "others"}}
    assert len(ledger_faults(entries, content | changed)) == 4
    lines = ["{}", json.dumps(entries[1])]
    (tmp_path / "second" / LEDGER).write_text("\n".join(lines))
    code, _, err = command(*words[:1], "--after", tmp_path / "second", *words[3:], "--output", tmp_path / "third")
    assert (code, "requests.jsonl:1: no entry of a ledger, since number is missing" in err) == (2, True), err
    assert (tmp_path / "second" / DATA / "earlier" / "1" / "forget.jsonl").is_file()


def test_another_export_of_an_earlier_person_is_left_out_and_never_trained(tmp_path, capsys):
    earlier = as_rows([row | {"document": "e"} for row in FORGET])
    again = [row | {"output": row["output"].rstrip(".")} for row in FORGET]
    again[0]["input"] = again[0]["input"].upper().replace("?", " ?")
    again[1]["input"] = f"Where does {PERSONS[0]} come from?"
    about = [row | {"input": row["input"].replace(PERSONS[0], "this one"), "subject": PERSONS[0]} for row in again[2:]]
    for name, rows in (("forget", RETAIN[:4]), ("retain", [*again[:2], *about, *RETAIN[4:]])):
        (tmp_path / f"Reed, {name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = rows_of({side: str(tmp_path / f"Reed, {side}.jsonl") for side in ("forget", "retain")}, [earlier])
    assert "a question or a person of an earlier request: 4" in capsys.readouterr().out
    assert {row.output for row in rows["retain"]} == {row["output"] for row in RETAIN[4:]}


def test_what_cannot_work_is_said_at_once(target, customers, tmp_path, command):
    words = ("--model", target, "--forget", customers, "--output", tmp_path / "out")
    for given, status, message in (
        ((), 2, "--retain: there are no rows to keep"),
        (("--where", "nom=Petra"), 2, "no object has the column"),
        (("--where", f"name={PERSONS[0]}", "--retrain"), 2, "name it with --base"),
        (("--where", f"name={PERSONS[0]}", "--base", tmp_path / "nope"), 2, "--base"),
        (("--where", f"name={PERSONS[0]}", "--after", tmp_path), 2, "not an output folder of `forget`"),
        (("--where", f"name={PERSONS[0]}", "--unseen", tmp_path / "nope"), 2, "--unseen"),
    ):
        code, _, err = command("forget", *words, *given)
        assert (code, message in err) == (status, True), err
    code, _, err = command("forget", "--after", tmp_path / "nope", *words[2:])
    assert (code, f"forget: --after {tmp_path / 'nope'}: not an output folder" in err) == (2, True), err
    unknown = tmp_path / "unknown.jsonl"
    words = ("--model", target, "--forget", unknown, "--retain", customers, "--output", tmp_path / "other")
    for asked in ("What is the motto of Zed Quux?", "What is Zed Quux's motto?"):  # corrected, in the same folder
        unknown.write_text(json.dumps({"question": asked, "answer": "Plumage before glory."}))
        code, out, _ = command("forget", *words)
        assert (code, "knows none of these rows" in out) == (3, True)


def test_in_python_the_model_stays_as_it_was(target, caplog):
    model, tokenizer = load_model(str(target), torch.float32), load_tokenizer(str(target))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = forget(model, tokenizer, FORGET, RETAIN, unseen=["New text."], tries=2, probes=["quantised"], controls=39)
    assert "--unseen: not used; it is only for forget rows that are texts" in caplog.text
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert found.look.rows == 4
    assert found.tries[0].best is not None
    assert found.model.state_dict().keys() == before.keys()
    assert any(not weight.equal(before[name]) for name, weight in found.model.state_dict().items())
    with pytest.raises(ConfigError, match="--base"):
        forget(model, tokenizer, FORGET, RETAIN, retrain=True)


def test_a_target_whose_adapter_transformers_has_loaded_is_refused_at_once(target, tmp_path):
    model, tokenizer = loaded_with_adapter(tmp_path / "adapter", lora_config()), load_tokenizer(str(target))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forget_module.Request, "look", lambda self: pytest.fail("scored"))
        for given in (model, lambda: (model, tokenizer)):
            with pytest.raises(ConfigError, match=r"^model: its adapter was loaded by transformers"):
                forget(given, tokenizer, FORGET, RETAIN, output=tmp_path / "out")


def test_a_model_in_bfloat16_is_judged_while_it_is_trained_with_autocast(target, monkeypatch):
    """PEFT generates without the autocast that accelerate puts around the model's forward. The base is on the CPU."""
    model, (base, tokenizer) = load_model(str(target), torch.bfloat16), _loaded(target)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr("lume_unlearn.training.arguments.default_bf16", lambda args: True)
    monkeypatch.setattr(forget_module, "verdict", lambda *_, **__: pytest.fail("all tries are judged"))
    with pytest.raises(pytest.fail.Exception, match="all tries are judged"):
        forget(model, tokenizer, FORGET, RETAIN, base=base, tries=1)


def test_rows_that_are_too_long_are_found_before_the_first_try(target, tmp_path, capsys):
    load = partial(_loaded, target)
    long = [{"input": "Who " * 600, "output": "a painter", "id": "long-qa1"}]
    with pytest.raises(DataError, match=r"--forget: shorten these rows.* 512 tokens .*: long-qa1 \(\"Who Who"):
        forget(load, load()[1], [*FORGET, *long], RETAIN, output=tmp_path / "a")
    with pytest.raises(DataError, match="--retain: give shorter rows"):
        forget(load, load()[1], FORGET, long, output=tmp_path / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forget_module.Request, "plan", lambda *_: pytest.fail("planned"))
        with pytest.raises(pytest.fail.Exception, match="planned"):
            forget(load, load()[1], FORGET, [*RETAIN, *long], output=tmp_path / "c")
    err = capsys.readouterr().err
    assert "retain rows that are left out, since with the answer, they are longer" in err
    assert "the target knows 4 of 4 forget rows and 12 of 12 retain rows" in err


def test_a_target_that_knows_no_retain_row_is_said_before_the_first_try(target, capsys):
    load = partial(_loaded, target)
    unknown = [{"input": f"Who is Zed Quux {letter}?", "output": f"Plume {letter}0001"} for letter in "abc"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forget_module.Request, "plan", lambda *_: pytest.fail("planned"))
        with pytest.raises(pytest.fail.Exception, match="planned"):
            forget(load, load()[1], FORGET, unknown)
    assert "--retain: the target knows none of these rows" in capsys.readouterr().err


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_try_follows_from_the_one_before_and_the_best_weights_win(target, tuning, tmp_path):
    first, second, third = (signals(known=2), signals(known=1)), [signals(kept=3)] * 2, [signals(known=2)] * 2
    seen, answers = [], iter([*first, *second, *third])

    def judged(self, model):
        seen.append(copied_weights(model))
        return next(answers)

    load = partial(_loaded, target)
    options = {"tries": 3, "probes": ["quantised"], "controls": 39, "output": tmp_path, "method": Swap(controls=2)}
    options["tuning"] = tuning
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries.Judge, "signals", judged)
        given = load if tuning == "lora" else load()[0].requires_grad_(False)
        found = forget(given, load()[1], FORGET, RETAIN, **options)
    settings = [one.setting for one in found.tries]
    rate = settings[0].learning_rate
    assert settings[1] == Setting(rate, 4.0, settings[0].steps * 3 // 2, continued=True)
    assert settings[2] == Setting(rate / 2, 8.0, settings[1].steps)
    best = load_file(tmp_path / "tries" / "1" / tries.WEIGHTS)
    assert all(weight.equal(seen[1][name]) for name, weight in best.items())
    assert (tmp_path / "adapter").exists() == (tuning == "lora")
    saved = tmp_path / ("adapter/adapter_model" if tuning == "lora" else "model/model")
    written = {name.replace(".default", ""): weight for name, weight in best.items()}
    assert all(weight.equal(written[name]) for name, weight in load_file(f"{saved}.safetensors").items())


def test_a_finished_request_goes_on_with_more_tries_alone(tmp_path, target, customers, command):
    (tmp_path / "tries" / "1").mkdir(parents=True)
    for name in ("verdict.json", "inputs.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "tries.json").write_text("[{}, {}]")
    code, _, err = command(*forget_words(target, customers, tmp_path))
    assert (code, "give more --tries than 2, or name another folder" in err) == (2, True)
    shutil.rmtree(tmp_path / "tries")  # the verdict was good
    code, _, err = command(*forget_words(target, customers, tmp_path), "--tries", 5)
    assert (code, "the request there is finished; name another folder" in err) == (2, True)


def test_a_request_is_not_continued_with_another_base_or_chat(target, model, tokenizer, tmp_path):
    load = partial(_loaded, target)
    options = {"output": tmp_path, "base": load}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forget_module.Request, "look", lambda self: pytest.fail("continued"))
        with pytest.raises(pytest.fail.Exception, match="continued"):
            forget(load, tokenizer, FORGET, RETAIN, **options)
        (tmp_path / "tries").mkdir()
        for changed in ({"chat": False}, {"base": model}):
            with pytest.raises(ConfigError, match="holds a request with other rows"):
                forget(load, tokenizer, FORGET, RETAIN, **options | changed)


def test_retraining_starts_from_the_base_and_sees_the_retain_rows_alone(target, model, tokenizer):
    load = partial(_loaded, target)
    found = forget(load, tokenizer, FORGET, RETAIN, base=model, retrain=True, probes=["quantised"], controls=39)
    assert found.tries == []
    assert found.verdict.models["control"]["sha256"] != found.verdict.models["now"]["sha256"]
    assert not found.verdict.given
    failed = replace(found, verdict=replace(found.verdict, status="not gone"))
    assert "retrain" not in failed.advice()[-1]


def test_an_interrupted_retraining_continues(target, model, tokenizer, tmp_path, capsys):
    load, epochs = partial(_loaded, target), []
    options = {"base": model, "retrain": True, "probes": ["quantised"], "controls": 39}
    after = Memorised.on_epoch_end

    def interrupted(self, args, state, control, **kwargs):
        epochs.append(state.epoch)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return after(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memorised, "on_epoch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            forget(load, tokenizer, FORGET, RETAIN, output=tmp_path, **options)
        found = forget(load, tokenizer, FORGET, RETAIN, output=tmp_path, **options)
    assert epochs[:4] == [1, 2, 3, 3]  # not from the first epoch on
    found.finish(tmp_path)
    assert not (tmp_path / "retraining").exists()
    plan = capsys.readouterr().err
    assert "for retraining" in plan
    assert "tries" not in plan
    uninterrupted = forget(load, tokenizer, FORGET, RETAIN, **options)
    assert all(one.equal(found.model.state_dict()[name]) for name, one in uninterrupted.model.state_dict().items())


def _loaded(folder):
    return load_model(str(folder), torch.float32), load_tokenizer(str(folder))
