"""A comparison's sweep.yaml is a file like any other: what it asks for is checked before it is added to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carv_3d.compare.methods import Method
from carv_3d.compare.sweep import MOST_PROMPTS, Sweep, open_folder
from carv_3d.errors import CarvError


def sweep(**more: Any) -> Sweep:
    methods = [Method("one"), Method("two", ["system.guidance.num_draws=4"])]
    return Sweep(**({"prompts": ["a red mug"], "methods": methods, "steps": 4} | more))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompts": ["a red zeppelin"]}, "'zeppelin'"),
        ({"prompts": ["a\x00b"]}, "control characters"),
        ({"prompts": ["a mug"] * 2 + [f"a {i}" for i in range(MOST_PROMPTS)]}, "there are 502 prompts; .* has 500"),
        ({"seeds": 10**5}, "seeds is 100000"),
    ],
)
def test_stored_prompts_and_seeds_are_checked_and_kept(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    open_folder(sweep(), tmp_path)
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    before = file.read_text()
    with pytest.raises(CarvError, match=rf"sweep.yaml: .*{said}"):
        open_folder(sweep(), tmp_path)
    assert file.read_text() == before
