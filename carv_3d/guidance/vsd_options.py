"""The options of variational score distillation, under threestudio's names where it has them, checked when read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from carv_3d.config.annealing import Annealed, check_annealed
from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions

CAMERA_CONDITIONS = ("extrinsics", "mvp")


@dataclass
class VSDOptions(GuidanceOptions):
    """What is told beside, or by another default than, score distillation's `GuidanceOptions`.

    Raises CarvError, naming the option, for a value that cannot be meant.
    """

    objectives: ClassVar[tuple[str, ...]] = ("vsd", "vsd_hifa")
    _image_objective: ClassVar[str] = "vsd_hifa"

    objective: str = "vsd"
    """vsd: w (guided - trained). vsd_hifa: the same, and loss_vsd_img, a loss in image space."""
    pretrained_model_name_or_path_lora: str = ""
    """The model that the LoRA is a variant of; "" or the teacher's own name: the teacher itself, loaded once."""
    guidance_scale: Annealed = 7.5
    """Annealed. The teacher's, read by `cfg_convention`."""
    guidance_scale_lora: Annealed = 1.0
    """Annealed. The LoRA's, between no camera and the camera: `none + s (camera - none)`."""
    lora_rank: int = 4
    lora_n_timestamp_samples: int = 1
    """K_lora, draws of (t, eps) per render on which the LoRA is trained in each step."""
    lora_cfg_training: bool = True
    """A tenth of the LoRA's draws are trained without camera, which guidance_scale_lora needs."""
    lora_max_batch: int = 4
    """Draws on which the LoRA is trained at once; halved by itself when memory runs out. The gradient is the same."""
    camera_condition_type: str = "extrinsics"
    """What a host gives as camera: extrinsics (camera to world) or mvp (model, view and projection)."""

    def __post_init__(self) -> None:
        if self.use_sjc:
            raise CarvError("use_sjc is no part of variational score distillation: leave it out.")
        super().__post_init__()
        self.guidance_scale_lora = check_annealed("guidance_scale_lora", self.guidance_scale_lora)
        for name in ("lora_rank", "lora_n_timestamp_samples", "lora_max_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CarvError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if not isinstance(self.lora_cfg_training, bool):
            raise CarvError(f"lora_cfg_training is {self.lora_cfg_training!r}; it must be true or false.")
        if self.camera_condition_type not in CAMERA_CONDITIONS:
            raise CarvError(
                f"camera_condition_type is {self.camera_condition_type!r}; "
                f"it must be one of {', '.join(CAMERA_CONDITIONS)}."
            )
        if self.vae_sample == "draw":
            raise CarvError("vae_sample is draw, and the LoRA trains on one sample per render: take sample or mode.")
        if self.use_recon_loss:
            raise CarvError("use_recon_loss is no part of variational score distillation: leave it out.")
