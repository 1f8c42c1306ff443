"""The options of `carv attribute`: their limits, and that features have them."""

from __future__ import annotations

from typing import Any

import pytest

from carv_3d.attribution import GroupedDrawOptions
from carv_3d.attribution.command import AttributeOptions
from carv_3d.attribution.queries import check_words
from carv_3d.errors import CarvError


def test_options_know_their_limits() -> None:
    with pytest.raises(CarvError, match="did not train owner/model: name its own with --training-images"):
        AttributeOptions(query="a red mug", model="owner/model")
    with pytest.raises(CarvError, match="query_draws is 8; it must be a multiple of 16"):
        AttributeOptions(query="a red mug", query_draws=8)


@pytest.mark.parametrize("text", ["a\x1b[31m", "a\x00", "caf\udce9", "a" * 2001])
def test_a_prompt_is_plain_text_before_any_work(text: str) -> None:
    with pytest.raises(CarvError, match=r"^the prompt (holds control characters or is no valid UTF-8|is longer than)"):
        check_words(text, "owner/model")
    check_words("", "owner/model")


def test_options_are_passed_on_to_the_features() -> None:
    more: dict[str, Any] = {"stratify": "none", "antithetic": False}
    options = AttributeOptions(query="a red mug", num_draws=6, query_draws=24, dim=32, seed=5, method="d-trak", **more)
    for read, draws, groups in ((options.features, 6, 2), (options.query_features, 24, 8)):
        assert read.draws == GroupedDrawOptions(num_draws=draws, groups=groups, **more)
        assert (read.dim, read.seed, read.output) == (32, 5, "mean-squared-l2-norm")
