"""A comparison's sweep.yaml is a file like any other: what it asks for is checked before it is added to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carv_3d.compare.command import run_sweep
from carv_3d.compare.methods import Method
from carv_3d.compare.request import CompareOptions
from carv_3d.compare.sweep import MOST_PROMPTS, Sweep, open_folder
from carv_3d.core.options import EngineOptions
from carv_3d.errors import CarvError
from carv_3d.generate.config import config_to_yaml, settled


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


def test_a_run_that_has_the_configuration_of_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.compare.engine.run_here", lambda *_: 0)
    monkeypatch.setattr("carv_3d.compare.command._write", lambda *_: None)
    asked = open_folder(sweep(), tmp_path)
    texts = [config_to_yaml(settled(asked.configuration(method, 0, 0), "voxel")) for method in asked.methods]
    files = [asked.folder(tmp_path, method, 0, 0) / "config.yaml" for method in asked.methods]

    def made() -> int:
        return run_sweep(asked, CompareOptions(out=tmp_path), EngineOptions())

    for file, text in zip(files, texts):
        assert made() == 0
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert made() == 0
    own = files[1].parent
    for text, said in (
        (texts[0], "num_draws = 2, and that run of method two has 4"),
        (texts[1].replace("lr: 0.06", "lr: 0.5"), "lr = 0.5, and that run of method two has 0.06"),
    ):
        files[1].write_text(text)
        with pytest.raises(CarvError, match=rf"{said}, so it is another's; delete {own}, and it is made again"):
            made()
