"""What `compare` reads from recipes, the settings that it tries, and the recipes that it writes."""

import numpy as np
import pytest
import yaml

from lume_unlearn.compare import training, tuning
from lume_unlearn.compare.contestants import contestants
from lume_unlearn.compare.run import _write_recipes
from lume_unlearn.compare.training import default_arguments
from lume_unlearn.errors import ConfigError
from lume_unlearn.methods.registry import METHODS
from tests.conftest import make_model

pytest.importorskip("optuna")


def test_trials_depend_on_the_content_of_the_files_that_a_recipe_names(tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("unseen", "substitutes")}
    recipe = {"method": "counterfactual"} | {name: str(file) for name, file in files.items()}
    (contestant,) = contestants([recipe], ["lora"], {}).values()
    found = []
    for word in ("Eve", "Ida", "Eve"):
        files["unseen"].write_text(f'{{"document": "Nobody saw {word}."}}')
        files["substitutes"].write_text(f'{{"text": "Ada", "substitute": "{word}"}}')
        found.append(contestant.contents())
    assert found[0] == found[2]
    assert all(found[0][f"content of {name}"] != found[1][f"content of {name}"] for name in files)


def test_each_contestant_has_a_recipe_of_its_own(tmp_path):
    files = [tmp_path / name for name in ("A/mine.yaml", "B/Mine.yaml", "ä x.yaml", "ö x.yaml")]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"method: npo\nbeta: 0.{number + 1}\n")
    entered = contestants([*files, "gd", {"method": "npo", "beta": 0.5, "name": "mine"}], ["lora"], {})
    _write_recipes(tmp_path / "recipes", {"settings": {name: {"best": {}} for name in entered}}, entered)
    found = {file.stem: yaml.safe_load(file.read_text()).get("beta") for file in (tmp_path / "recipes").iterdir()}
    expected = {"mine_lora": 0.1, "Mine_lora_2": 0.2, "ä_x_lora": 0.3, "ö_x_lora": 0.4, "gd_lora": None}
    assert found == expected | {"mine_lora_3": 0.5}


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ("method: npo\n\tbeta: 1", "cannot be read; it must be YAML in UTF-8 (while scanning"),
        ("method: npo # \xfc", "cannot be read; it must be YAML in UTF-8 ('utf-8' codec"),
        ("- npo", "is no recipe; write one option a line"),
        ("method: [npo]", "must name one method"),
        ("method: npo\ntuning: 8", "tuning 8: must be one text"),
        ("method: npo\nlora_targets: [q_proj]", "lora_targets ['q_proj']: must be one text"),
        ("method: npo\nlora_rank: big", "lora_rank 'big': must be a whole number above 0"),
        ("method: gd\nbeta: 0.3", "gd has no parameter beta"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_by_name(recipe, fault, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(recipe, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        contestants([file], ["lora"], {})
    assert str(caught.value).startswith(f"--methods {file}: {fault}")


def test_numbers_in_quotes_are_numbers_and_a_learning_rate_of_0_is_refused():
    recipe = {"method": "npo", "lora_rank": "8", "max_steps": "5", "weight_decay": "1e-2", "unseen": "2024"}
    (found,) = contestants([recipe], ["lora"], {}).values()
    assert [*found.recipe.values()] == [8, 5, 0.01, "2024"]
    (zero,) = contestants([{"method": "npo", "learning_rate": 0}], "lora", {}).values()
    with pytest.raises(ConfigError, match="--learning_rate 0: must be a number above 0"):
        default_arguments(zero, make_model())


def test_one_text_is_a_list_of_one():
    assert list(contestants("gd", "lora", {})) == ["gd lora"]


def test_unknown_options_of_recipes_and_of_compare_are_named():
    with pytest.raises(ConfigError, match="`run` has no option nonsense") as caught:
        contestants([{"method": "npo", "nonsense": 1}, "gd", "gd"], ["lora"], {"learning_rat": 1})
    assert "no option learning_rat" in str(caught.value)
    assert "is given twice" in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_default_lies_in_its_range_and_every_trial_can_run(name):
    (contestant,) = contestants([name], ["full"], {}).values()
    default = tuning.default_setting(contestant.method, training.default_arguments(contestant, make_model()))
    ends = tuning.ranges(contestant.method, default)
    assert default.keys() == ends.keys()
    for task in tuning.tasks(default, 5):
        assert all(ends[key][0] <= value <= ends[key][1] for key, value in task["fixed"].items())


def test_first_three_trials_vary_rate_and_retain_weight():
    found = [task["fixed"] for task in tuning.tasks({"learning_rate": 1e-5, "retain_weight": 2.0, "beta": 0.1}, 6)]
    pairs = [(task["learning_rate"] / 1e-5, task["retain_weight"]) for task in found[:3]]
    assert pairs == pytest.approx(np.array([(1, 2), (5, 6), (0.2, 2)]))
    assert {t["beta"] for t in found[:5]} == {0.1}
    assert found[5] == {}  # the sampler's


def test_of_settings_that_chance_may_order_the_highest_rate_is_chosen():
    low, high = ({"learning_rate": rate, "retain_weight": 4} for rate in (1e-3, 5e-3))
    weighted = high | {"retain_weight": 12}
    trials = [(low, 0.06), (weighted, 0.12), (high, 0.08), ({"learning_rate": 1e-2}, 0.51)]
    assert tuning.chosen(trials, 0.03) is high
    assert tuning.chosen(trials, 0.1) is weighted  # of two with this rate, the one that spares the retain rows
    assert tuning.chosen(trials, 0.01) is low
    assert tuning.chosen(trials, 1.0) is weighted  # not the one that loses too much of the retain rows
    assert tuning.chosen([(low, 0.51), (high, 0.52)], 0.03) is low
    assert tuning.chosen([({"beta": 1.0}, 0.3), ({"beta": 2.0}, 0.2)], 0) == {"beta": 2.0}
