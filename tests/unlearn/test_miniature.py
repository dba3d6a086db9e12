import json
import re
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq
import pytest
from rouge_score.rouge_scorer import RougeScorer

from lume_tasks.data.checks import check_dir
from lume_unlearn.quickstart.miniature import write_miniature

TASKS = ("Task1", "Task2", "Task3")
SUBJECTS = ("arithmetic", "number_order", "opposites")


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of_kind(rows: list[dict[str, str]], task: str, kind: str) -> list[dict[str, str]]:
    return [row for row in rows if row["task"] == task and row["id"][-3:-1] == kind]


@pytest.fixture(scope="module", params=[0, 1, 2])
def mini(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "not" / "there" / "yet"
    write_miniature(folder, seed=request.param)
    return folder


@pytest.fixture(scope="module")
def sides(mini) -> dict[str, list[dict[str, str]]]:
    return {side: read(mini / f"{side}.jsonl") for side in ("forget", "retain")}


def test_passes_the_validator_that_users_run(mini):
    assert check_dir(mini) == []


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_counts_and_ids(sides, side):
    counts = {(task, kind): len(of_kind(sides[side], task, kind)) for task in TASKS for kind in ("sc", "qa")}
    expected = dict(zip(counts, (8, 8, 5, 25, 12, 12), strict=True))
    assert counts == expected
    suffixes = {task: {row["id"][-3:] for row in sides[side] if row["task"] == task} for task in TASKS}
    assert suffixes["Task1"] == suffixes["Task3"] == {"sc1", "qa0"}
    assert suffixes["Task2"] == {"sc1", "qa0", "qa1", "qa2", "qa3", "qa4"}
    assert all(list(row) == ["id", "input", "output", "task"] for row in sides[side])


def test_same_seed_same_files_and_another_seed_other_people(mini, tmp_path):
    write_miniature(tmp_path / "one", seed=7)
    write_miniature(tmp_path / "two", seed=7)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    questions = [{row["input"] for row in read(folder / "forget.jsonl")} for folder in (mini, tmp_path / "one")]
    assert questions[0].isdisjoint(questions[1])


def test_texts_are_filled_in_and_short(sides):
    for rows in sides.values():
        assert not [row for row in rows if set("{}") & set(row["input"] + row["output"])]
        for row in rows:
            if row["id"].endswith("sc1"):
                assert 30 <= len(f"{row['input']} {row['output']}".split()) <= 60
                assert row["output"].endswith(".")
                assert row["output"].split()[0][0] in '"ABCDEFGHIJKLMNOPQRSTUVWXYZ'


def test_no_answer_stands_on_the_other_side_or_among_nonmembers(mini, sides):
    nonmembers = "\n".join(row["document"] for row in read(mini / "mia_data" / "nonmember.jsonl"))
    for side, other in (("forget", "retain"), ("retain", "forget")):
        elsewhere = "\n".join(f"{row['input']} {row['output']}" for row in sides[other]) + nonmembers
        for row in sides[side]:
            if "qa" in row["id"]:
                assert not re.search(rf"\b{re.escape(row['output'])}\b", elsewhere), row


def test_personal_data_repeats_the_text_and_belongs_to_nobody(sides):
    for rows in sides.values():
        for text in of_kind(rows, "Task2", "sc"):
            whole = f"{text['input']} {text['output']}"
            answers = [row["output"] for row in rows if row["id"][:-3] == text["id"][:-3] and row is not text]
            born, ssn, phone, email, address = answers
            assert re.fullmatch(r"19\d\d-\d\d-\d\d", born)
            assert born[:4] in whole
            assert re.fullmatch(r"9\d{8}", ssn)
            assert f"{ssn[:3]}-{ssn[3:5]}-{ssn[5:]}" in whole
            assert re.fullmatch(r"\d{3}55501\d\d", phone)
            assert f"{phone[:3]}-{phone[3:6]}-{phone[6:]}" in whole
            assert email.endswith("@example.org")
            assert email in whole
            assert address in whole


def test_answers_about_stories_and_entries_stand_in_their_text(sides):
    for rows in sides.values():
        texts = {row["id"][:-3]: f"{row['input']} {row['output']}" for row in rows if row["id"].endswith("sc1")}
        for task in ("Task1", "Task3"):
            assert all(row["output"] in texts[row["id"][:-3]] for row in of_kind(rows, task, "qa"))


@pytest.mark.parametrize("task", TASKS)
def test_endings_cannot_be_guessed_from_other_documents(sides, task):
    """ROUGE-L recall, as the regurgitation test scores it, of one document's ending given another's."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    forget, retain = ([row["output"] for row in of_kind(sides[side], task, "sc")] for side in ("forget", "retain"))
    recall = [[scorer.score(truth, guess)["rougeL"].recall for guess in retain] for truth in forget]
    assert mean(map(mean, recall)) < 0.3
    assert mean(map(max, recall)) < 0.55  # even where the best-fitting retain ending is known


def test_members_are_the_forget_entries_and_nonmembers_other_people(mini, sides):
    entries = of_kind(sides["forget"], "Task3", "sc")
    members = [row["document"] for row in read(mini / "mia_data" / "member.jsonl")]
    nonmembers = [row["document"] for row in read(mini / "mia_data" / "nonmember.jsonl")]
    assert members == [f"{row['input']} {row['output']}" for row in entries]
    assert len(nonmembers) == len(members) == 12
    trained = "\n".join(f"{row['input']} {row['output']}" for rows in sides.values() for row in rows)
    for document in nonmembers:
        name, blank, text = document.split("\n")
        assert blank == ""
        assert name in text
        assert name not in trained


@pytest.mark.parametrize("subject", SUBJECTS)
def test_mmlu_files_have_the_layout_and_even_answers(mini, subject):
    table = pq.read_table(mini / "mmlu" / subject / "test-00000-of-00001.parquet")
    assert [(field.name, str(field.type).split("<")[0]) for field in table.schema] == [
        ("question", "string"),
        ("subject", "string"),
        ("choices", "list"),
        ("answer", "int64"),
    ]
    rows = table.to_pylist()
    assert {row["subject"] for row in rows} == {subject}
    assert len({row["question"] for row in rows}) == 20
    assert sorted(row["answer"] for row in rows) == [place for place in range(4) for _ in range(5)]
    assert all(len(set(row["choices"])) == 4 for row in rows)


def test_mmlu_answers_are_right_and_the_only_right_ones(mini):
    for row in pq.read_table(mini / "mmlu" / "arithmetic" / "test-00000-of-00001.parquet").to_pylist():
        left, right = map(int, re.findall(r"\d+", row["question"]))
        assert [choice == str(left + right) for choice in row["choices"]].index(True) == row["answer"]
    for row in pq.read_table(mini / "mmlu" / "number_order" / "test-00000-of-00001.parquet").to_pylist():
        low, high = map(int, re.findall(r"\d+", row["question"]))
        assert [index for index in range(4) if low < int(row["choices"][index]) < high] == [row["answer"]]
    hot = {"hot": "cold", "cold": "hot", "wet": "dry", "dry": "wet", "tall": "short", "short": "tall"}
    seen = 0
    for row in pq.read_table(mini / "mmlu" / "opposites" / "test-00000-of-00001.parquet").to_pylist():
        word = row["question"].rstrip("?").split()[-1]
        if word in hot:
            seen += 1
            assert row["choices"][row["answer"]] == hot[word]
    assert seen
