"""Records what threestudio's own unified guidance gives, for `test_unified.py`.

    PYTHON tests/extension/record_unified.py CHECKOUT

PYTHON has threestudio's packages, with diffusers below 0.20: its variational kind runs on nothing newer. Texts are
those of `record_parity.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from record_parity import Recorder, drawn, fill_lora
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real_host"))
import cpu_host
import recorded_parity as recorded
import recorded_unified as unified

from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def record_sds(recorder: Recorder, texts: Any) -> None:
    """Score distillation, case by case; one timestep for all renders."""
    for name, given in unified.CASES:
        case = f"{name}, {given}"
        guidance = recorder.stock(unified.KIND, guidance_scale=recorded.SCALE, **unified.OPTIONS[name])
        rgb = recorded.render(given)
        n = len(rgb)
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 1)
        eps, posterior = (recorded.gaussian(kind, n, 4, 8, 8) for kind in ("eps", "posterior"))
        with drawn(SimpleNamespace(vae=guidance.pipe.vae), [t], [eps], posterior):
            utils = recorded.RecordedPrompts(texts, n, "perp-neg" in given)
            out = guidance(rgb, utils, rgb_as_latents="latents" in given, **unified.views(n))
        recorder.keep(case, out, rgb, t=t.tolist() * n)
        if name == "one step":
            recorder.tensors |= {f"returned: {key}": out[key] for key in unified.RETURNED}


def record_vsd(recorder: Recorder, texts: Any, module: Any) -> None:
    """Variational score distillation: gradients on the render, the LoRA's loss and gradient."""
    from diffusers.models.embeddings import TimestepEmbedding

    # it writes out 1280 for the width of the time embedding
    module.TimestepEmbedding = lambda a, b: TimestepEmbedding(a, 32)
    module.random = mock.Mock(random=lambda: 0.5)  # no camera is dropped
    for case in unified.VSD_OPTIONS:
        options, n = unified.options(case, recorder.v_model), unified.renders(case)
        guidance = recorder.stock(unified.KIND, guidance_scale=7.5, **options)
        embedding = getattr(guidance, "camera_embedding", None)
        parameters = fill_lora(guidance.pipe_phi.unet, embedding and embedding.module)
        rgb, K = recorded.render("perp-neg" if n == 1 else "images"), options.get("vsd_lora_n_timestamp_samples", 1)
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 1)
        t_phi = recorded.timesteps(f"{case} phi", 0, 999, K * n)
        noises = [recorded.gaussian("eps", n, 4, 8, 8), recorded.gaussian("eps phi", K * n, 4, 8, 8)]
        vae = SimpleNamespace(vae=guidance.pipe.vae)
        with drawn(vae, [t, t_phi], noises, recorded.gaussian("posterior", n, 4, 8, 8)):
            out = guidance(rgb, recorded.RecordedPrompts(texts, n), **unified.views(n))
        gradients = torch.autograd.grad(out["loss_train_phi"], list(parameters.values()))
        products = {name: recorded.along(g, name) for name, g in zip(parameters, gradients)}
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        recorder.keep(case, out, rgb, t=t.tolist() * n, t_phi=t_phi.tolist(), loss_phi=out["loss_train_phi"].item(),
                      phi_gradient=products, phi_norm=norm)  # fmt: skip


def main() -> None:
    """Record everything and write the two files."""
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recorder = Recorder(checkout, Path(folder))
        assert recorder.facts["weights"] == recorded.facts()["weights"]
        texts = load_file(recorded.TENSORS)
        recorder.facts[unified.KIND] = vars(recorder.host.find(unified.KIND).Config())
        from threestudio.models.guidance import stable_diffusion_unified_guidance as module

        cpu_host.resize_like(StableDiffusionTeacher.load(recorder.model, device="cpu", with_text=False), module)
        record_sds(recorder, texts)
        record_vsd(recorder, texts, module)
        recorder.write(unified.TENSORS, unified.FACTS)


if __name__ == "__main__":
    main()
