"""Estimators by name."""

from __future__ import annotations

import pytest

from carv_3d.core.estimator import EstimatorOptions
from carv_3d.core.estimator_names import LAYOUT, PLAIN, WORDS, estimator_options
from carv_3d.errors import CarvError


def test_the_words_of_a_name_set_one_option_each() -> None:
    assert estimator_options("is+strat+antithetic") == {"proposal": "weight", "stratify": "render", "antithetic": True}
    assert estimator_options("adaptive+global+control") == {
        "proposal": "adaptive", "stratify": "global", "control_variate": True,
    }  # fmt: skip
    assert estimator_options("uniform") == {"proposal": "uniform"}


def test_every_word_makes_an_estimator_that_differs_from_the_plain_one() -> None:
    plain = EstimatorOptions(num_draws=4, **PLAIN)
    made = {name: EstimatorOptions(num_draws=4, **{**PLAIN, **estimator_options(name)}) for name in WORDS}
    assert made.pop("uniform") == plain
    assert len({plain, *made.values()}) == len(WORDS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("is+strut", "there is no method 'strut' (in 'is+strut'); did you mean strat?"),
        ("", "there is no method '' (in ''); there are: uniform, is, adaptive"),
        ("is+adaptive", "says is and adaptive, which exclude each other"),
        ("is+is", "says is and is, which exclude each other"),
        ("control+antithetic", "in a pair eps cancels by itself"),
    ],
)
def test_names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(CarvError) as caught:
        estimator_options(name)
    assert message in str(caught.value)


def test_a_command_may_take_fewer_words() -> None:
    with pytest.raises(CarvError, match="there are: strat, global, antithetic"):
        estimator_options("xyz", {name: WORDS[name] for name in LAYOUT})
