"""Records what threestudio's own score distillation via inversion gives, for `test_sdi.py`.

    PYTHON tests/extension/record_sdi.py CHECKOUT

PYTHON has threestudio's packages. Texts are those of `record_parity.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from record_parity import Recorder, drawn
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real_host"))
import cpu_host
import recorded_parity as recorded
import recorded_sdi as sdi

from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

INFO = ("target", "target_latent", "noisy_img", "noise_pred")


def record(recorder: Recorder, texts: Any, module: Any) -> None:
    """Gradients case by case, the length of the last step of each inversion, and what `test_info` shows."""
    for name, given in sdi.CASES:
        case = f"{name}, {given}"
        options = sdi.options(name, recorder.v_model)
        guidance = recorder.stock(sdi.KIND, guidance_scale=recorded.SCALE, **options)
        rgb = sdi.render(given)
        n = len(rgb)
        # one for all: threestudio's reads the clean latents of all renders by the first one's
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 1).repeat(n)
        u = float(recorded.fill(f"{case} last", 1) + 1) / 2
        module.random = mock.Mock(random=lambda u=u: u)
        with drawn(guidance, [t], sdi.noise(n), recorded.gaussian("posterior", n, 4, 8, 8)):
            out = guidance(rgb, recorded.RecordedPrompts(texts, n, "perp-neg" in given), **recorded.views(n))
        recorder.keep(case, out, rgb, t=t.tolist(), u=u)
        if name == "drawn":
            with drawn(guidance, [t], sdi.noise(n), recorded.gaussian("posterior", n, 4, 8, 8)):
                out = guidance(rgb, recorded.RecordedPrompts(texts, n), test_info=True, **recorded.views(n))
            recorder.tensors |= {f"info: {key}": out[key] for key in INFO}
            defined = recorded.gaussian("defined", n, 4, 8, 8)
            with drawn(guidance, [t], [], recorded.gaussian("posterior", n, 4, 8, 8)):
                more = {**recorded.views(n), "call_with_defined_noise": defined}
                out = guidance(rgb, recorded.RecordedPrompts(texts, n), **more)
            recorder.keep("defined noise, images", out, rgb, t=t.tolist())


def main() -> None:
    """Record everything and write the two files."""
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recorder = Recorder(checkout, Path(folder))
        assert recorder.facts["weights"] == recorded.facts()["weights"]
        recorder.facts[sdi.KIND] = vars(recorder.host.find(sdi.KIND).Config())
        from threestudio.models.guidance import stable_diffusion_sdi_guidance as module

        cpu_host.resize_like(StableDiffusionTeacher.load(recorder.model, device="cpu", with_text=False), module)
        record(recorder, load_file(recorded.TENSORS), module)
        recorder.write(sdi.TENSORS, sdi.FACTS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
