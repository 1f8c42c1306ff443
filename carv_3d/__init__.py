"""carv_3d: compute-aware variance reduction for expectations with diffusion teachers (arXiv 2605.21489).

In a loop of one's own:

    from carv_3d import NoiseSchedule, sds_loss

    schedule = NoiseSchedule.from_diffusers(pipe.scheduler)
    latents = encode(render(camera))                        # (R, C, h, w), with autograd
    sds_loss(latents, eps_hat, schedule, num_draws=8).backward()  # any eps_hat(z_t, t), guidance inside

`CarvEstimator` keeps state and gives every draw: adaptive proposals, annealed ranges, several processes.
`SDSGuidance` and `VSDGuidance` put it on a `StableDiffusionTeacher`; `GaussianTeacher` is known exactly, for tests.
The command `carv` and `generate`, `variance`, `compare`, `attribution` and `distill` build on these.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from carv_3d.lazy import lazily
from carv_3d.version import __version__

if TYPE_CHECKING:
    from carv_3d.core import (
        CarvEstimator,
        ContinuousSchedule,
        CostMeter,
        Draws,
        Estimate,
        EstimatorOptions,
        NoiseSchedule,
        sds_loss,
    )
    from carv_3d.errors import CarvError
    from carv_3d.generate.config import load_config
    from carv_3d.guidance import GuidanceOptions, GuidanceOutput, SDSGuidance
    from carv_3d.guidance.vsd import VSDGuidance
    from carv_3d.guidance.vsd_options import VSDOptions
    from carv_3d.teachers.base import Teacher
    from carv_3d.teachers.gaussian import GaussianTeacher
    from carv_3d.teachers.lora_score import LoraScore
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
    from carv_3d.teachers.stable_diffusion_xl import StableDiffusionXLTeacher

_attribute = lazily(
    __name__,
    {
        "core": "CarvEstimator ContinuousSchedule CostMeter Draws Estimate EstimatorOptions NoiseSchedule sds_loss",
        "errors": "CarvError",
        "generate.config": "load_config",
        "guidance": "GuidanceOptions GuidanceOutput SDSGuidance",
        "guidance.vsd": "VSDGuidance",
        "guidance.vsd_options": "VSDOptions",
        "teachers.base": "Teacher",
        "teachers.gaussian": "GaussianTeacher",
        "teachers.lora_score": "LoraScore",
        "teachers.stable_diffusion": "StableDiffusionTeacher",
        "teachers.stable_diffusion_xl": "StableDiffusionXLTeacher",
    },
)

__all__ = [
    "CarvError",
    "CarvEstimator",
    "ContinuousSchedule",
    "CostMeter",
    "Draws",
    "Estimate",
    "EstimatorOptions",
    "GaussianTeacher",
    "GuidanceOptions",
    "GuidanceOutput",
    "LoraScore",
    "NoiseSchedule",
    "SDSGuidance",
    "StableDiffusionTeacher",
    "StableDiffusionXLTeacher",
    "Teacher",
    "VSDGuidance",
    "VSDOptions",
    "__version__",
    "load_config",
    "sds_loss",
]


def __getattr__(name: str) -> Any:
    """The names above, when asked for: importing the package alone does not load torch."""
    from carv_3d.errors import packages

    with packages("generate" if name == "load_config" else "teachers"):
        return _attribute(name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _OldNames:
    """Asked by `import` where all else found nothing: modules under the names of before the packages."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("carv_3d."):
            return None
        from carv_3d.moved import spec

        return spec(name)


sys.meta_path.append(_OldNames)  # type: ignore[arg-type]
