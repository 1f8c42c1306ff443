"""The guidances that are given images, inside a real threestudio: an image that is absent or of another size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ldm_tiny
import pytest
import torch
from host_models import built, for_ours
from omegaconf import OmegaConf
from PIL import Image
from recorded_parity import render
from recorded_unified import views
from small_config import small
from zero123_models import write_zero123_folder

from carv_3d.errors import CarvError

KINDS = ["zero123-guidance", "stable-zero123-guidance", "zero123-unified-guidance"]
EDITING = {
    "stable-diffusion-instructpix2pix-guidance": {"ip2p_name_or_path": "pix2pix"},
    "stable-diffusion-controlnet-guidance": {"pretrained_model_name_or_path": "stable-diffusion"},
}


@pytest.fixture
def options(threestudio: Any, tmp_path: Path) -> Any:
    """What makes a guidance of a type of a tiny model, with an image where it takes one."""

    def build(kind: str) -> dict[str, Any]:
        if kind == "zero123-unified-guidance":
            model = write_zero123_folder(tmp_path / "unified")
            return {"pretrained_model_name_or_path": str(model), "half_precision_weights": False}
        if kind in EDITING:
            models = tmp_path / "models"
            given = {name: str(built(models, model)) for name, model in EDITING[kind].items()}
            config = {"system": {"guidance_type": kind}}
            ours = dict(word.removeprefix("system.guidance.").split("=") for word in for_ours(config, models))
            schedule = {"ddim_scheduler_name_or_path": next(iter(given.values()))}
            return {**given, **ours, **schedule, "half_precision_weights": False}
        ldm_tiny.install()
        return ldm_tiny.write(tmp_path / "ldm")

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_or_opaque_image_is_one_sentence(kind: str, threestudio: Any, options: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "opaque.png")
    wrong = {"there is no such file": "nowhere.png", "is empty": ""}
    if kind != "zero123-unified-guidance":  # which takes an opaque image, as threestudio's own does
        wrong["has no transparency"] = str(tmp_path / "opaque.png")
    given = options(kind)
    for said, path in wrong.items():
        with pytest.raises(CarvError, match=re.escape(said)):
            threestudio.find(f"carv-{kind}")({**given, "cond_image_path": path})


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_size_is_resized(kind: str, threestudio: Any, options: Any, tmp_path: Path) -> None:
    Image.new("RGBA", (30, 7), (200, 40, 40, 255)).save(tmp_path / "wide.png")
    guidance = threestudio.find(f"carv-{kind}")({**options(kind), "cond_image_path": str(tmp_path / "wide.png")})
    rgb = render("images")
    loss = next(value for name, value in guidance(rgb, **views(2)).items() if name.startswith("loss_"))
    gradient = torch.autograd.grad(loss, rgb)[0]
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.norm()) > 0


@pytest.mark.parametrize("kind", EDITING)
def test_an_image_that_does_not_go_with_the_renders_is_one_sentence(kind: str, threestudio: Any, options: Any) -> None:
    guidance, rgb = threestudio.find(f"carv-{kind}")(options(kind)), torch.rand(2, 16, 16, 3)
    wrong: dict[str, Any] = {
        "needs cond_rgb, an image for each render": None,
        "give one image (H, W, 3) for each render": torch.rand(1, 16, 16, 3),
    }
    if "controlnet" in kind:  # InstructPix2Pix's is resized, as by threestudio's own
        wrong["give an image of the render's size"] = torch.rand(2, 16, 24, 3)
    for said, image in wrong.items():
        with pytest.raises(CarvError, match=re.escape(said)):
            guidance(rgb, image, prompt_utils=object())


@pytest.mark.parametrize("kind", EDITING)
def test_a_system_that_gives_no_image_ends_the_run_with_a_sentence(
    kind: str, options: Any, checkout: Path, tmp_path: Path
) -> None:
    config = OmegaConf.to_container(OmegaConf.load(checkout / "configs" / "dreamfusion-sd.yaml"), resolve=False)
    assert isinstance(config, dict)
    prompts = {"pretrained_model_name_or_path": str(built(tmp_path / "models", "stable-diffusion")), "spawn": False}
    config["system"]["guidance_type"], config["system"]["guidance"] = f"carv-{kind}", options(kind)
    config["system"]["prompt_processor"] = {**prompts, "prompt": "a red mug"}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "stock.yaml")
    script, words = Path(__file__).with_name("cpu_host.py"), small({str(key): value for key, value in config.items()})
    done = subprocess.run(
        [sys.executable, *map(str, (script, checkout, tmp_path / "stock.yaml", 1, tmp_path / "run")), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("carv: ")]
    assert "needs cond_rgb, an image for each render, and this system gives none" in said
    assert not any(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
