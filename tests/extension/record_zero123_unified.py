"""Records what threestudio's unified Zero123 guidance gives, for `test_zero123_unified.py`.

    PYTHON tests/extension/record_zero123_unified.py CHECKOUT

PYTHON has threestudio's packages, with diffusers below 0.20: its variational kind runs on nothing newer. torchvision's
two functions that it uses are written out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import record_parity as stock
import recorded_parity as recorded
import recorded_zero123_unified as unified
import torch
from compvis_models import write_image
from PIL import Image
from recorded_unified import views
from torch import Tensor
from zero123_models import PARTS, write_zero123_folder


class Recorder(stock.Recorder):
    """threestudio, the models, and what has been recorded so far."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.host = stock.cpu_host.enter(checkout)
        self.model = str(write_zero123_folder(folder / "model"))
        self.phi = str(write_zero123_folder(folder / "phi", "phi "))
        write_image(folder / "image.png")
        self.image = str(folder / "image.png")
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"weights": recorded.fingerprint(Path(self.model), PARTS), "cases": {}}

    def stock(self, kind: str, **options: Any) -> Any:
        """threestudio's guidance, with the image."""
        return super().stock(kind, cond_image_path=self.image, **options)


def to_tensor(image: Any) -> Tensor:
    """As torchvision's."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def to_pil_image(x: Tensor) -> Any:
    """As torchvision's."""
    return Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy())


class SmallImages:
    """Pillow's images, resized to 16 where threestudio writes 256."""

    @staticmethod
    def open(path: str) -> Any:
        image = Image.open(path).convert("RGBA")
        return SimpleNamespace(convert=lambda mode: SimpleNamespace(resize=lambda size: image.resize((16, 16))))


def record_sds(recorder: Recorder) -> None:
    """Score distillation, case by case; one timestep for all renders."""
    for name, given in unified.CASES:
        case = f"{name}, {given}"
        guidance = recorder.stock(unified.KIND, **unified.OPTIONS[name])
        rgb = recorded.render(given)
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 1)
        eps, posterior = (recorded.gaussian(kind, 2, 4, 8, 8) for kind in ("eps", "posterior"))
        with stock.drawn(SimpleNamespace(vae=guidance.pipe.vae), [t], [eps], posterior):
            out = guidance(rgb, **views(2), rgb_as_latents="latents" in given)
        recorder.keep(case, out, rgb, t=t.tolist() * 2)
        if name == "one step":
            recorder.tensors |= {f"returned: {key}": out[key] for key in unified.RETURNED}


def record_vsd(recorder: Recorder, module: Any) -> None:
    """Variational score distillation: gradients on the render, the LoRA's loss and gradient."""
    from diffusers.models.embeddings import TimestepEmbedding

    # it writes out 1280 for the width of the time embedding
    module.TimestepEmbedding = lambda a, b: TimestepEmbedding(a, 32)
    module.random = mock.Mock(random=lambda: 0.5)  # no camera is dropped
    for case in unified.VSD_OPTIONS:
        guidance = recorder.stock(unified.KIND, **unified.options(case, recorder.phi))
        embedding = getattr(guidance, "camera_embedding", None)
        parameters = stock.fill_lora(guidance.pipe_phi.unet, embedding and embedding.module)
        rgb = recorded.render("images")
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 1)
        t_phi = recorded.timesteps(f"{case} phi", 0, 999, 2)
        noises = [recorded.gaussian("eps", 2, 4, 8, 8), recorded.gaussian("eps phi", 2, 4, 8, 8)]
        vae = SimpleNamespace(vae=guidance.pipe.vae)
        with stock.drawn(vae, [t, t_phi], noises, recorded.gaussian("posterior", 2, 4, 8, 8)):
            out = guidance(rgb, **views(2))
        gradients = torch.autograd.grad(out["loss_train_phi"], list(parameters.values()))
        products = {name: recorded.along(g, name) for name, g in zip(parameters, gradients)}
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        recorder.keep(case, out, rgb, t=t.tolist() * 2, t_phi=t_phi.tolist(), loss_phi=out["loss_train_phi"].item(),
                      phi_gradient=products, phi_norm=norm)  # fmt: skip


def main() -> None:
    """Record everything and write the two files."""
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.append(str(checkout / "extern"))  # as its pipeline's folder names the class
        recorder = Recorder(checkout, Path(folder))
        recorder.facts[unified.KIND] = vars(recorder.host.find(unified.KIND).Config())
        from record_zero123 import shrink
        from threestudio.models.guidance import zero123_unified_guidance as module

        shrink(module)
        module.TF, module.Image = SimpleNamespace(to_tensor=to_tensor, to_pil_image=to_pil_image), SmallImages
        record_sds(recorder)
        record_vsd(recorder, module)
        recorder.write(unified.TENSORS, unified.FACTS)


if __name__ == "__main__":
    main()
