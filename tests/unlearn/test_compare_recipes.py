"""What `compare` reads from recipes, and the recipes that it writes."""

import pytest
import yaml

from lume_unlearn.compare.contestants import contestants
from lume_unlearn.compare.run import _write_recipes
from lume_unlearn.errors import ConfigError

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
    files = [tmp_path / name for name in ("A/mine.yaml", "B/mine.yaml", "ä x.yaml", "ö x.yaml")]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"method: npo\nbeta: 0.{number + 1}\n")
    entered = contestants([*files, "gd", {"method": "npo", "beta": 0.5, "name": "mine"}], ["lora"], {})
    _write_recipes(tmp_path / "recipes", {"settings": {name: {"best": {}} for name in entered}}, entered)
    found = {file.stem: yaml.safe_load(file.read_text()).get("beta") for file in (tmp_path / "recipes").iterdir()}
    expected = {"mine_lora": 0.1, "mine_lora_2": 0.2, "ä_x_lora": 0.3, "ö_x_lora": 0.4, "gd_lora": None}
    assert found == expected | {"mine_lora_3": 0.5}


def test_unknown_options_of_recipes_and_of_compare_are_named():
    with pytest.raises(ConfigError, match="`run` has no option nonsense") as caught:
        contestants([{"method": "npo", "nonsense": 1}, "gd", "gd"], ["lora"], {"learning_rat": 1})
    assert "no option learning_rat" in str(caught.value)
    assert "is given twice" in str(caught.value)
