"""Every family in threestudio's double: a guidance of its own, or one sentence that says what is read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import host_double as double
import pytest
import torch
from family_matrix import FAMILIES, HOSTS
from small_families import build_family

from carv_3d.errors import CarvError
from carv_3d.teachers.load import load_teacher


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_guides_or_is_refused(name: str, host: Any, tmp_path: Path) -> None:
    folder = build_family(name, tmp_path / "model")
    given = {"pretrained_model_name_or_path": str(folder)}
    if name not in HOSTS:
        for kind in ("guidance", "prompt-processor"):
            with pytest.raises(CarvError, match=r"and Stable Diffusion 1.x or 2.x was expected: use load_teacher or"):
                host.modules[f"carv-stable-diffusion-{kind}"](given)
        return
    guidance, teacher = (
        host.modules[HOSTS[name]]({**given, "seed": 0, "num_draws": 2}),
        load_teacher(str(folder), device="cpu"),
    )
    text, uncond = teacher.text_embeddings(["a mug", "a cup"]), teacher.text_embeddings(["", ""])
    size = teacher.image_size
    rgb = torch.rand(2, size, size, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = guidance(rgb, double.PromptUtils(text, uncond), **double.VIEWS)
    assert out["nfe"] == 8.0  # two renders, two draws, text and uncond
    gradient = torch.autograd.grad(out["loss_sds"], rgb)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1e-5
