"""Records what threestudio's Zero123 guidances give, for `test_recorded_zero123.py`.

    PYTHON tests/extension/record_zero123.py CHECKOUT

PYTHON has threestudio's packages. The network is tests/compvis_models.py's; the sizes that threestudio writes out (256
and 32) are exchanged for its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

import record_parity as stock
import recorded_parity as recorded
import recorded_zero123 as zero123
import torch
from compvis_models import Gaussian, write_zero123
from torch import Tensor

SIZES = {(256, 256): (16, 16), (32, 32): (8, 8)}


class Recorder(stock.Recorder):
    """threestudio and what has been recorded so far."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.host = stock.cpu_host.enter(checkout)
        self.files = write_zero123(folder, "compvis_models.LatentDiffusion")
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"cases": {}}

    def stock(self, kind: str, **options: Any) -> Any:
        """threestudio's guidance, its options as from a YAML file."""
        from omegaconf import OmegaConf

        guidance = self.host.find(kind)(OmegaConf.create({**self.files, **options}))
        guidance.update_step(0, recorded.STEP)
        return guidance


def shrink(module: Any) -> None:
    """Has a module of threestudio's resize to the tiny model's sizes."""
    import cv2

    functional, images = types.ModuleType("functional"), types.ModuleType("cv2")
    vars(functional).update(vars(torch.nn.functional))
    vars(images).update(vars(cv2))

    def interpolate(x: Tensor, size: tuple[int, int], **more: Any) -> Tensor:
        return torch.nn.functional.interpolate(x, SIZES[tuple(size)], **more)

    def resize(image: Any, size: tuple[int, int], **more: Any) -> Any:
        return cv2.resize(image, SIZES[tuple(size)], **more)

    functional.interpolate, images.resize = interpolate, resize  # type: ignore[attr-defined]
    module.F, module.cv2 = functional, images


def record(recorder: Recorder) -> None:
    """The gradients, case by case."""
    for kind, name, given in zero123.CASES:
        case = zero123.case_name(kind, name, given)
        guidance = recorder.stock(kind, **zero123.OPTIONS[name])
        rgb = zero123.render(given)
        eps, posterior = zero123.noise(len(rgb))
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, len(rgb))
        with (
            mock.patch.object(Gaussian, "sample", lambda self, xi=posterior: self.mean + self.std * xi),
            mock.patch.object(torch, "randint", return_value=t),
            mock.patch.object(torch, "randn_like", return_value=eps),
        ):
            out = guidance(rgb, **recorded.views(len(rgb)), rgb_as_latents="latents" in given)
        recorder.keep(case, out, rgb, t=t.tolist())


def record_areas(recorder: Recorder) -> None:
    """What OpenCV makes of images of other sizes."""
    import cv2

    for size in zero123.AREAS:
        small = cv2.resize(zero123.pixels(*size), (16, 16), interpolation=cv2.INTER_AREA)
        recorder.tensors[f"area {size[0]} {size[1]}"] = torch.from_numpy(small)


def main() -> None:
    """Record everything and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkout = options.checkout.resolve()
        os.chdir(folder)
        recorder = Recorder(checkout, Path(folder))
        from threestudio.models.guidance import stable_zero123_guidance, zero123_guidance

        for module in (zero123_guidance, stable_zero123_guidance):
            shrink(module)
        for kind in zero123.KINDS:
            recorder.facts[kind] = vars(recorder.host.find(kind).Config())
        record(recorder)
        record_areas(recorder)
        recorder.write(zero123.TENSORS, zero123.FACTS)


if __name__ == "__main__":
    main()
