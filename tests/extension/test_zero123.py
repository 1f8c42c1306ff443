"""The Zero123 guidances in a host double: every stock option is acted on, and what cannot be is one sentence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compvis_models
import numpy as np
import pytest
import recorded_parity as recorded
import recorded_zero123 as zero123
import torch
import yaml
from PIL import Image
from torch import Tensor

from carv_3d.errors import CarvError

FACTS = recorded.facts(zero123.FACTS)
STEP = 50
OTHER: dict[str, Any] = {
    "pretrained_model_name_or_path": "other.ckpt", "pretrained_config": "other.yaml", "cond_image_path": "other.png",
    "cond_elevation_deg": 20.0, "cond_azimuth_deg": 30.0, "cond_camera_distance": 1.4, "guidance_scale": 2.0,
    "grad_clip": 0.05, "min_step_percent": 0.7, "max_step_percent": 0.3,
}  # fmt: skip
"""Another value for each stock option that changes the gradient; the files are written by `other_files`."""
ALONE = {"vram_O", "max_items_eval", "half_precision_weights"}
"""Those that have a test of their own."""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return compvis_models.write_zero123(tmp_path)


@pytest.fixture
def make(host: Any, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    compvis_models.install("extern.ldm_zero123", monkeypatch)

    def build(kind: str = "zero123-guidance", **options: Any) -> Any:
        return host.modules[f"carv-{kind}"]({**files, "seed": 0, "vae_sample": False, "num_draws": 2, **options})

    return build


def other_files(folder: Path) -> None:
    """Another checkpoint, configuration and image."""
    whole = torch.load(folder / "model.ckpt", weights_only=True)
    torch.save({"state_dict": {name: 0.5 * x for name, x in whole["state_dict"].items()}}, folder / "other.ckpt")
    config = yaml.safe_load((folder / "model.yaml").read_text())
    config["model"]["params"]["linear_end"] = 0.03
    (folder / "other.yaml").write_text(yaml.safe_dump(config))
    Image.fromarray(np.full((16, 16, 4), (200, 30, 30, 255), np.uint8)).save(folder / "other.png")


def gradient(guidance: Any, rgb: Tensor) -> Tensor:
    guidance.update_step(0, STEP)
    return torch.autograd.grad(guidance(rgb, **recorded.views(2))["loss_sds"], rgb)[0]


def test_every_stock_option_is_tried() -> None:
    for kind in zero123.KINDS:
        assert set(FACTS[kind]) - ALONE == set(OTHER)


@pytest.mark.parametrize("kind", zero123.KINDS)
@pytest.mark.parametrize("name", OTHER)
def test_every_stock_option_is_acted_on(
    kind: str, name: str, make: Callable[..., Any], rgb: Tensor, tmp_path: Path
) -> None:
    other_files(tmp_path)
    value = OTHER[name]
    given = str(tmp_path / value) if isinstance(value, str) else value
    before, after = (gradient(make(kind, **options), rgb) for options in ({}, {name: given}))
    # Stable Zero123 has no number for the distance
    ignored = (kind, name) == ("stable-zero123-guidance", "cond_camera_distance")
    assert torch.equal(before, after) == ignored
    assert bool(torch.isfinite(after).all())


def test_the_network_stays_in_single_precision(make: Callable[..., Any]) -> None:
    assert make(half_precision_weights=True)._teacher.dtype == torch.float32  # as threestudio has it


def test_without_the_decoder_nothing_is_decoded(make: Callable[..., Any], rgb: Tensor) -> None:
    guidance = make()
    assert not hasattr(guidance._teacher.network.first_stage_model, "decoder")
    with pytest.raises(CarvError, match="loaded without its decoder: set vram_O to false"):
        guidance(rgb, **recorded.views(2), guidance_eval=True)
    assert hasattr(make(vram_O=False)._teacher.network.first_stage_model, "decoder")
    out = make(vram_O=False, use_img_loss=True, use_recon_loss=True)(rgb, **recorded.views(2))
    assert {"loss_sds", "loss_sds_img", "loss_recon"} == {name for name in out if name.startswith("loss_")}


def test_the_image_goes_with_the_text_alone(make: Callable[..., Any], rgb: Tensor) -> None:
    """Guidance is between the image with its camera and nothing at all."""
    guidance = make(num_draws=1)
    given: list[dict[str, list[Tensor]]] = []
    network = guidance._teacher.network
    apply_model = network.apply_model
    network.apply_model = lambda x, t, cond: (given.append(cond), apply_model(x, t, cond))[1]
    guidance(rgb, **recorded.views(2))
    (cond,) = given
    (embedding,), (latents,) = cond["c_crossattn"], cond["c_concat"]
    assert embedding.shape == (4, 1, compvis_models.WIDTH)
    assert torch.equal(latents[:2], guidance._teacher.image_latents.expand(2, -1, -1, -1))
    assert not latents[2:].any()
    assert not embedding[2:].any()
    assert not torch.allclose(embedding[0], embedding[1])  # by camera


def test_the_range_of_timesteps_may_be_set_by_the_system(make: Callable[..., Any], rgb: Tensor) -> None:
    guidance = make()
    guidance.set_min_max_steps(0.3, 0.4)
    out = guidance(rgb, **recorded.views(2))
    assert (out["min_step"], out["max_step"]) == (300, 400)


def test_all_that_is_logged_is_a_scalar(make: Callable[..., Any], rgb: Tensor) -> None:
    for name, value in make()(rgb, **recorded.views(2)).items():
        assert isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1), name


def save_image(folder: Path, name: str) -> str:
    """An image, or what is none, that cannot be the condition."""
    path = folder / name
    if name == "opaque.png":
        Image.new("RGB", (16, 16)).save(path)
    elif name == "text.png":
        path.write_text("no image")
    elif name == "folder.png":
        path.mkdir()
    elif name == "cut.png":
        path.write_bytes((folder / "image.png").read_bytes()[:60])
    return str(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.png", "there is no such file; name an RGBA image"),
        ("opaque.png", "has no transparency, so the object in it has no outline; name an RGBA image"),
        ("text.png", "is no image that can be read"),
        ("folder.png", "is a folder, and a file is due"),
        ("cut.png", "is cut short or damaged"),
    ],
)
def test_an_image_that_cannot_be_used_is_one_sentence(
    name: str, said: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(CarvError, match=re.escape(said)):
        make(cond_image_path=save_image(tmp_path, name))


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparency_of_other_kinds_is_read(mode: str, make: Callable[..., Any], tmp_path: Path, rgb: Tensor) -> None:
    image = Image.new("RGBA", (16, 16), (90, 90, 90, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image.save(tmp_path / "rgba.png")
    if mode == "LA":
        image.convert("LA").save(tmp_path / "other.png")
    else:
        image.convert(mode).save(tmp_path / "other.png", transparency=0)
    assert bool(torch.isfinite(gradient(make(cond_image_path=str(tmp_path / "other.png")), rgb)).all())


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"objective": "nfsd"}, "needs a negative prompt, and this model reads none"),
        ({"vae": "some/vae"}, "vae is for models in diffusers' format"),
        ({"use_img_loss": True}, "need the decoder: set vram_O to false"),
        ({"use_recon_loss": True}, "need the decoder: set vram_O to false"),
        ({"pretrained_model_name_or_path": "no/such.ckpt"}, "no weights at no/such.ckpt: there is no such file"),
        ({"pretrained_config": "no/such.yaml"}, "no/such.yaml is missing; name the file that comes with threestudio"),
        ({"cond_elevation_deg": "high"}, "cond_elevation_deg is 'high'"),
        ({"num_drawz": 3}, "did you mean num_draws"),
    ],
)
def test_a_wrong_value_is_one_sentence(cfg: dict[str, Any], said: str, make: Callable[..., Any]) -> None:
    with pytest.raises(CarvError, match=re.escape(said)):
        make(**cfg)


def test_a_network_that_is_not_there_is_one_sentence(host: Any, files: dict[str, str]) -> None:
    with pytest.raises(CarvError, match=r"cannot be imported \(.*\): it comes with threestudio"):
        host.modules["carv-zero123-guidance"](files)


def test_a_class_of_another_package_is_not_made(make: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copy(tmp_path / "model.yaml", tmp_path / "bad.yaml")
    config = yaml.safe_load((tmp_path / "bad.yaml").read_text())
    config["model"]["params"]["first_stage_config"]["params"]["inner"] = [{"target": "subprocess.Popen"}]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CarvError, match=re.escape("names the class 'subprocess.Popen', and only those of")):
        make(pretrained_config=str(tmp_path / "bad.yaml"))
