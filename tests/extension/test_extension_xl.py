"""The extension's Stable Diffusion XL in a host double: the packed text reaches the UNet, errors name the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch

from carv_3d.core.estimator import Draws
from carv_3d.errors import CarvError
from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

B = 2


def make(host: Any, folder: Path, **cfg: Any) -> Any:
    given = {"pretrained_model_name_or_path": str(folder), "seed": 0, "vae_sample": False, **cfg}
    return host.modules["carv-stable-diffusion-xl-guidance"](given)


def test_one_draw_is_text_plus_scale_times_the_difference(
    host: Any, xl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # threestudio's convention, with XL's own conditions on each side
    teacher = StableDiffusionXLTeacher.load(str(xl_folder), device="cpu")
    text, uncond = teacher.text_embeddings(["a mug", "a cup"]), teacher.text_embeddings(["", ""])
    guidance = make(host, xl_folder, num_draws=1, proposal="uniform", guidance_scale=7.5)
    g = torch.Generator().manual_seed(1)
    draws = Draws(torch.randint(20, 980, (B, 1), generator=g), torch.randn(B, 1, 4, 8, 8, generator=g))
    monkeypatch.setattr(guidance._carv.estimator, "draw", lambda *_: draws)
    rgb = torch.rand(B, 16, 16, 3, generator=g).requires_grad_()
    out = guidance(rgb, double.PromptUtils(text, uncond), **double.VIEWS)
    z = teacher.encode(rgb.permute(0, 3, 1, 2), sample=False)
    t, eps = draws.t[:, 0], draws.eps[:, 0]
    abar = teacher.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * eps
        e, e0 = teacher.eps_hat(z_t, t, text), teacher.eps_hat(z_t, t, uncond)
        f = (1 - abar) * (e + 7.5 * (e - e0) - eps)
    expected = torch.autograd.grad(z, rgb, f / B)[0]
    gradient = torch.autograd.grad(out["loss_sds"], rgb)[0]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert (out["nfe"], out["renders"]) == (2.0 * B, float(B))


def test_options_are_the_sd_guidances_but_for_the_model(host: Any) -> None:
    sd, xl = (host.modules[f"carv-stable-diffusion-{kind}guidance"].Config() for kind in ("", "xl-"))
    differ = {name for name in vars(sd) if getattr(sd, name) != getattr(xl, name)}
    assert differ == {"pretrained_model_name_or_path"}
    assert xl.pretrained_model_name_or_path == "stabilityai/stable-diffusion-xl-base-1.0"


def test_the_prompt_processor_caches_packed_text_apart_from_the_stock_ones(
    host: Any, xl_folder: Path, tmp_path: Path
) -> None:
    processor = host.modules["carv-stable-diffusion-xl-prompt-processor"](
        {"pretrained_model_name_or_path": str(xl_folder), "prompt": "a mug", "cache_dir": str(tmp_path)}
    )
    teacher = StableDiffusionXLTeacher.load(str(xl_folder), device="cpu")
    cached = torch.stack([processor.load_from_cache(prompt) for prompt in ("a mug", "")])
    torch.testing.assert_close(cached, teacher.text_embeddings(["a mug", ""]))
    assert [path.name for path in tmp_path.iterdir()] == ["carv-xl"]
    sizes = [file.stat().st_size for file in (tmp_path / "carv-xl").iterdir()]
    assert max(sizes) < 2 * 21 * 40 * 4  # one prompt a file, not the batch


def test_folders_of_the_other_family_name_what_to_use(host: Any, sd_folder: Path, xl_folder: Path) -> None:
    with pytest.raises(CarvError, match="carv-stable-diffusion-guidance"):
        make(host, sd_folder)
    given = {"pretrained_model_name_or_path": str(xl_folder)}
    for kind in ("guidance", "prompt-processor"):
        with pytest.raises(CarvError, match="carv-stable-diffusion-xl-guidance with carv-stable-diffusion-xl-prompt"):
            host.modules[f"carv-stable-diffusion-{kind}"](given)
    with pytest.raises(CarvError, match="carv-stable-diffusion-guidance"):
        host.modules["carv-stable-diffusion-xl-prompt-processor"]({"pretrained_model_name_or_path": str(sd_folder)})


def test_another_prompt_processors_text_is_refused(host: Any, xl_folder: Path, sd_teacher: Any) -> None:
    text = sd_teacher.text_embeddings(["a mug", "a cup"])
    with pytest.raises(CarvError, match="carv-stable-diffusion-xl-prompt-processor"):
        make(host, xl_folder)(torch.rand(B, 16, 16, 3), double.PromptUtils(text, text), **double.VIEWS)
