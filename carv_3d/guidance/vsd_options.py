"""The options of variational score distillation, under threestudio's names where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from carv_3d.config.annealing import Annealed
from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.objectives.table import TrainedObjective


@dataclass(frozen=True, kw_only=True)
class VSDOptions(
    GuidanceOptions,
    defaults={"guidance_scale": 7.5, "objective": "vsd"},
    kinds={"objective": TrainedObjective},
    helps={"objective": "vsd: w (guided - trained). vsd_hifa: the same, and loss_vsd_img, a loss in image space."},
):
    """`GuidanceOptions`, and those of the LoRA score.

    Raises:
        CarvError: naming the option, for a value that cannot be meant.
    """

    pretrained_model_name_or_path_lora: str = option(
        "", "The model that the LoRA is a variant of; empty, or the teacher's name: the teacher, loaded once."
    )
    guidance_scale_lora: Annealed = option(
        1.0,
        "The LoRA's, between no camera and the camera: none + s (camera - none).",
        least=-1e6,
        most=1e6,
    )
    lora_rank: int = option(4, "Rank of the LoRA's matrices.", least=1, most=4096)
    lora_n_timestamp_samples: int = option(
        1,
        "K_lora, draws of (t, eps) per render on which the LoRA is trained in each step.",
        least=1,
        most=2**20,
    )
    lora_cfg_training: bool = option(
        True, "A tenth of the LoRA's draws are trained without camera, which guidance_scale_lora needs."
    )
    lora_max_batch: int = option(
        4,
        "Draws on which the LoRA is trained at once; halved by itself when memory runs out.",
        least=1,
        most=2**40,
    )
    camera_condition_type: Literal["extrinsics", "mvp", "spherical", "none"] = option(
        "extrinsics",
        "What a host gives as camera: extrinsics (camera to world), mvp (model, view and projection), spherical "
        "(elevation, sine and cosine of azimuth, distance) or none.",
    )

    @property
    def camera_width(self) -> int:
        """How many numbers a camera has."""
        return {"spherical": 4, "none": 0}.get(self.camera_condition_type, 16)

    def __post_init__(self) -> None:
        if self.use_sjc:
            raise CarvError("use_sjc is no part of variational score distillation: leave it out.")
        super().__post_init__()
        if self.vae_sample == "draw":
            raise CarvError("vae_sample is draw, and the LoRA trains on one sample per render: take sample or mode.")
        if self.use_recon_loss:
            raise CarvError("use_recon_loss is no part of variational score distillation: leave it out.")
