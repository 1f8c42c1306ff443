"""The patch of GaussianDreamer, an older threestudio: its lines load the extension, and its calls work."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch
from host_loops import PATCHES, hunks
from torch import Tensor


@pytest.fixture
def guidance(host: Any, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a host that knows nothing of the extension but for the patch's lines."""
    for name in [m for m in sys.modules if m.startswith("threestudio-carv")]:
        monkeypatch.delitem(sys.modules, name)
    host.modules.clear()
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "threestudio-carv").symlink_to(double.EXTENSION)
    monkeypatch.chdir(tmp_path)
    (lines,) = hunks("gaussiandreamer").values()
    exec(compile(textwrap.dedent(lines), "gaussiandreamer.patch", "exec"), {"threestudio": host, "sys": sys})
    given = {"pretrained_model_name_or_path": str(sd_folder), "guidance_scale": 100.0, "weighting_strategy": "sds"}
    given |= {"min_step_percent": 0.02, "max_step_percent": 0.98, "grad_clip": [0, 1.5, 2.0, 1000]}
    return host.modules["carv-stable-diffusion-guidance"]({**given, "num_draws": 8, "seed": 0})


def test_the_patch_changes_at_most_30_lines() -> None:
    lines = (PATCHES / "gaussiandreamer.patch").read_text().splitlines()
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len(changed) <= 30
    assert "spec.loader.exec_module(sys.modules[spec.name])" in changed[-2]


def test_its_own_range_of_timesteps_and_clip_count(guidance: Any, rgb: Tensor, utils: Any) -> None:
    """Its system narrows the range after 500 steps, by a call; the clip follows from the configuration."""
    guidance.update_step(0, 600)
    guidance.set_min_max_steps(min_step_percent=0.02, max_step_percent=0.55)
    out = guidance(rgb, utils, **double.VIEWS, rgb_as_latents=False, guidance_eval=False)
    assert (out["min_step"], out["max_step"], out["K"]) == (20, 550, 8)
    assert out["grad_clip"] == pytest.approx(1.5 + 0.5 * 0.6)
    assert float(torch.autograd.grad(out["loss_sds"], rgb)[0].abs().max()) > 0
