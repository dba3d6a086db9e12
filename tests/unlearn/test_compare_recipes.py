"""What `compare` reads from recipes, and the recipes that it writes."""

import pytest

from lume_unlearn.compare.contestants import contestants
from lume_unlearn.errors import ConfigError

pytest.importorskip("optuna")


def test_unknown_options_of_recipes_and_of_compare_are_named():
    with pytest.raises(ConfigError, match="`run` has no option nonsense") as caught:
        contestants([{"method": "npo", "nonsense": 1}, "gd", "gd"], ["lora"], {"learning_rat": 1})
    assert "no option learning_rat" in str(caught.value)
    assert "is given twice" in str(caught.value)
