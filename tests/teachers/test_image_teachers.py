"""Teachers that are given an image, and where a ControlNet and a scheduler of another model come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from small_editing import build_controlnet, build_pix2pix, build_sd8

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.editing import denoised_from
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.teachers.controlnet import ControlNetTeacher
from carv_3d.teachers.instruct_pix2pix import InstructPix2PixTeacher
from carv_3d.teachers.parts import DDIM, find_controlnet, find_ddim, find_part


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = build_pix2pix(tmp_path_factory.mktemp("pix2pix") / "model")
    return InstructPix2PixTeacher.load(str(folder), device="cpu")


def test_an_image_is_asked_for(pix2pix: Any, tmp_path: Path) -> None:
    build_controlnet(tmp_path / "net")
    folder = build_sd8(tmp_path / "sd")
    controlled = ControlNetTeacher.load_with(tmp_path / "net", 0.5, str(folder), device="cpu")
    z = torch.zeros(1, 4, 8, 8)
    for teacher in (pix2pix, controlled):
        text = teacher.text_embeddings(["a mug"])
        with pytest.raises(CarvError, match="is given an image next to the text: Conditioning"):
            teacher.eps_hat(z, torch.tensor([5]), text)
    assert not any(parameter.requires_grad for parameter in controlled.controlnet.parameters())


@pytest.mark.parametrize("to_clean", [False, True])
def test_an_edit_is_diffusers_ddim(to_clean: bool, pix2pix: Any) -> None:
    """Over t = 300 in six steps: 50 apart, one above their multiples."""
    from diffusers import DDIMScheduler

    g = torch.Generator().manual_seed(0)
    z, image = torch.randn(2, 1, 4, 8, 8, generator=g)
    text, null = pix2pix.text_embeddings(["a mug"]), pix2pix.text_embeddings([""])
    cond = Conditioning(text, null, image_cond=image, image_scale=torch.tensor([1.5]))
    guidance = SDSGuidance(pix2pix, GuidanceOptions(seed=0))
    ddim = DDIM(pix2pix.schedule, 1, to_clean)
    edited = denoised_from(guidance, z, torch.tensor([300]), cond, 3.0, ddim, 6)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=to_clean, steps_offset=1,
    )  # fmt: skip
    scheduler.config.num_train_timesteps = 300  # as threestudio does
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.tolist() == [251, 201, 151, 101, 51, 1]
    for t in scheduler.timesteps:
        eps = guidance.predict(z, t[None], cond, 3.0).guided
        z = scheduler.step(eps, t, z).prev_sample
    torch.testing.assert_close(edited, z, rtol=1e-4, atol=1e-4)


def test_a_small_t_has_fewer_steps(pix2pix: Any) -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 8, 8, generator=g)
    text = pix2pix.text_embeddings(["a mug"])
    guidance = SDSGuidance(pix2pix, GuidanceOptions(seed=0))
    times = []
    guidance.predict = lambda z_t, t, *rest: times.append(int(t)) or type("E", (), {"guided": z_t})  # type: ignore
    denoised_from(guidance, z, torch.tensor([3]), Conditioning(text, text), 3.0, DDIM(pix2pix.schedule), 20)
    assert times == [3, 2, 1]


def test_a_scheduler_is_known_or_read_from_a_folder(tmp_path: Path) -> None:
    known = find_ddim("runwayml/stable-diffusion-v1-5")
    assert torch.equal(known.schedule.alphas_cumprod, NoiseSchedule.scaled_linear().alphas_cumprod)
    assert (known.offset, known.to_clean) == (1, False)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"beta_schedule": "linear", "num_train_timesteps": 500}))
    read = find_ddim(str(tmp_path))
    assert (read.schedule.num_train_timesteps, read.offset, read.to_clean) == (500, 0, True)
    file.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    with pytest.raises(CarvError, match=r"which cannot be used: .*scheduler_config\.json: it is of flow matching"):
        find_ddim(str(tmp_path))


def test_a_part_comes_from_the_cache_before_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_controlnet(tmp_path / "hub")
    asked: list[tuple[bool, Any]] = []

    def snapshot(name: str, local_files_only: bool, cache_dir: Any, allow_patterns: list[str], **more: Any) -> str:
        asked.append((local_files_only, cache_dir))
        if local_files_only and cache_dir != "full":
            raise FileNotFoundError
        assert allow_patterns[0] == "config.json"
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert find_controlnet("a/b", "controlnet", "full") == tmp_path / "hub"
    assert find_controlnet("a/b", "controlnet", "empty") == tmp_path / "hub"
    assert asked == [(True, "full"), (True, "empty"), (False, "empty")]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CarvError, match="part is a/b, which is no local folder, and the hub's copy has no config"):
        find_part("a/b", ["config.json"], "part", "a folder")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(CarvError, match="this is offline mode"):
        find_part("a/b", ["config.json"], "part", "a folder")
