"""Records what threestudio-mvdream's guidance gives, for `test_mvdream.py`.

    PYTHON tests/extension/record_mvdream.py CHECKOUT EXTENSION PACKAGE

PYTHON has threestudio's packages; EXTENSION is a checkout of threestudio-mvdream, PACKAGE one of MVDream. The network
is tests/mvdream_models.py's. Where recon_loss is false, the stock guidance reads an `alphas_cumprod` of itself that it
does not have: it is given the model's. Sizes that it writes out (256, 64) are exchanged for the tiny model's.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

import mvdream_models as models
import record_parity as stock
import recorded_mvdream as mvdream
import recorded_parity as recorded
import torch
from compvis_models import Gaussian
from torch import Tensor

SIZES = {(256, 256): (16, 16), (64, 64): (8, 8)}


class Recorder(stock.Recorder):
    """threestudio, its extension, and what has been recorded so far."""

    def __init__(self, checkout: Path, extension: Path, package: Path, folder: Path) -> None:
        self.host = stock.cpu_host.enter(checkout)
        sys.path.append(str(package))  # for its `camera_utils`
        models.write_weights(folder / "model.pt")
        self.module = load_guidance(extension)
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"cases": {}}

    def stock(self, kind: str, **options: Any) -> Any:
        """The stock guidance, its options as from a YAML file."""
        from omegaconf import OmegaConf

        guidance = self.host.find(kind)(OmegaConf.create(options))
        guidance.update_step(0, recorded.STEP)
        guidance.alphas_cumprod = guidance.model.alphas_cumprod
        return guidance


def load_guidance(extension: Path) -> Any:
    """The module of its guidance, with the tiny model for any name."""

    def build_model(name: str, ckpt_path: str | None = None) -> Any:
        model = models.LatentDiffusionInterface(**models.PARAMS)
        model.load_state_dict(torch.load("model.pt", weights_only=True))
        return model

    zoo = types.ModuleType("mvdream.model_zoo")
    zoo.build_model = build_model  # type: ignore[attr-defined]
    sys.modules["mvdream.model_zoo"] = zoo
    spec = importlib.util.spec_from_file_location("stock_mvdream", extension / "guidance" / "mvdream_guidance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stock_mvdream"] = module
    spec.loader.exec_module(module)
    functional = types.ModuleType("functional")
    vars(functional).update(vars(torch.nn.functional))

    def interpolate(x: Tensor, size: tuple[int, int], **more: Any) -> Tensor:
        return torch.nn.functional.interpolate(x, SIZES[tuple(size)], **more)

    functional.interpolate = interpolate  # type: ignore[attr-defined]
    module.F = functional
    return module


def record(recorder: Recorder) -> None:
    """The gradients, case by case; one timestep for all renders."""
    for name, given, n in mvdream.CASES:
        case = mvdream.case_name(name, given, n)
        guidance = recorder.stock(mvdream.KIND, **mvdream.OPTIONS[name])
        rgb = mvdream.render(given, n)
        eps, posterior = mvdream.noise(n)
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 1)
        with (
            mock.patch.object(Gaussian, "sample", lambda self, xi=posterior: self.mean + self.std * xi),
            mock.patch.object(torch, "randint", return_value=t),
            mock.patch.object(torch, "randn_like", return_value=eps),
        ):
            out = guidance(rgb, mvdream.Prompts(), **mvdream.batch(given, n))
        at = [321, 321] if given == "timestep" else [guidance.min_step, guidance.max_step]
        # that of the mean over views where the loss is of reconstruction, and of the gradient elsewhere
        norm = out["grad_norm"] * (n if guidance.cfg.recon_loss else 1)
        kept = {**out, "grad_norm": norm, "min_step": at[0], "max_step": at[1]}
        recorder.keep(case, kept, rgb, t=321 if given == "timestep" else t.item())


def main() -> None:
    """Record everything and write the two files."""
    checkout, extension, package = (Path(word).resolve() for word in sys.argv[1:4])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recorder = Recorder(checkout, extension, package, Path(folder))
        recorder.facts[mvdream.KIND] = vars(recorder.host.find(mvdream.KIND).Config())
        record(recorder)
        recorder.write(mvdream.TENSORS, mvdream.FACTS)


if __name__ == "__main__":
    main()
