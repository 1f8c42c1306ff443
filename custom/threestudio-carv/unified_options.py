"""The options of threestudio's unified guidances that `carv_3d` has under another name, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from carv_3d.config.annealing import Annealed
from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError

WEIGHTINGS = {"dreamfusion": "one_minus_alpha", "uniform": "uniform", "fantasia3d": "fantasia3d_alpha"}
"""threestudio's names, which here are of alpha = sqrt(abar) where its other guidances have abar."""
UNUSED = {
    "controlnet_model_name_or_path": "leave it out, or take a ControlNet guidance",
    "preprocessor": "leave it out",
    "control_scale": "leave it out",
    "lora_model_name_or_path": "give the file as loras",
}


@dataclass(frozen=True, kw_only=True)
class UnifiedOptions(Options):
    """What the unified guidances have besides `GuidanceOptions`, with threestudio's names and defaults.

    Raises:
        CarvError: naming the option, for a value that cannot be meant or kept.
    """

    guidance_type: Literal["sds", "vsd"] = option("sds", "Score distillation sampling, or variational.")
    weighting_strategy: Literal["dreamfusion", "uniform", "fantasia3d"] = option(
        "dreamfusion", "w(t), a = sqrt(abar). dreamfusion: 1 - a; uniform: 1; fantasia3d: sqrt(a) (1 - a)."
    )
    return_rgb_1step_orig: bool = option(False, "Return the image that the first draw is denoised to at once.")
    return_rgb_multistep_orig: bool = option(False, "Return the image that the first draw is denoised to in steps.")
    n_rgb_multistep_orig_steps: int = option(4, "How many steps.", least=1, most=1000)
    controlnet_model_name_or_path: str | None = option(None, "threestudio's, which loads it and uses it nowhere.")
    preprocessor: str | None = option(None, "threestudio's, which reads it nowhere.")
    control_scale: float = option(1.0, "threestudio's, which reads it nowhere.")
    lora_model_name_or_path: str | None = option(None, "threestudio's, which reads it nowhere.")
    vsd_phi_model_name_or_path: str | None = option(None, "The model that the LoRA is a variant of. null: the teacher.")
    vsd_guidance_scale_phi: Annealed = option(1.0, "Of the LoRA: none + s (camera - none).", least=-1e6, most=1e6)
    vsd_use_lora: bool = option(True, "threestudio's; here there is always a LoRA.")
    vsd_lora_cfg_training: bool = option(False, "A tenth of the LoRA's draws are trained without camera.")
    vsd_lora_n_timestamp_samples: int = option(1, "Draws per render that train the LoRA.", least=1, most=2**20)
    vsd_use_camera_condition: bool = option(True, "The LoRA is given the camera.")
    vsd_camera_condition_type: Literal["extrinsics", "mvp", "spherical"] | None = option(
        "extrinsics", "What it is given: camera to world, model-view-projection, or angles and distance."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, fix in UNUSED.items():
            if getattr(self, name) != self.declared()[name].default:
                raise CarvError(f"{name} is {getattr(self, name)!r}, which threestudio's own never uses: {fix}.")
        if not self.vsd_use_lora:
            raise CarvError(
                "vsd_use_lora is false, which leaves the camera's embedding alone to be trained: set it to true."
            )
        if self.camera_condition is None:
            raise CarvError(
                "vsd_camera_condition_type is null and vsd_use_camera_condition true: name a type, or set the second "
                "to false."
            )

    @property
    def camera_condition(self) -> str | None:
        """As `VSDOptions.camera_condition_type`."""
        return self.vsd_camera_condition_type if self.vsd_use_camera_condition else "none"

    def named(self) -> dict[str, Any]:
        """Their values under the names of `VSDOptions`, which has those of `GuidanceOptions`."""
        plain = {"weighting_strategy": WEIGHTINGS[self.weighting_strategy]}
        if self.guidance_type == "sds":
            return plain
        return {
            **plain,
            "pretrained_model_name_or_path_lora": self.vsd_phi_model_name_or_path or "",
            "guidance_scale_lora": self.vsd_guidance_scale_phi,
            "lora_cfg_training": self.vsd_lora_cfg_training,
            "lora_n_timestamp_samples": self.vsd_lora_n_timestamp_samples,
            "camera_condition_type": self.camera_condition,
        }
