"""`guidance_type: carv-zero123-unified-guidance`: other views of the object in one image, by SDS or VSD.

The model is in diffusers' format. As for `carv-stable-diffusion-unified-guidance`, each render has timesteps of its own
where threestudio draws one for all renders of a step: each render's draws have the same distribution.
"""

from typing import Any

import numpy as np
import threestudio
import torch
from PIL import Image
from threestudio.utils.base import BaseModule

from carv_3d.errors import CarvError
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.guidance.vsd import VSDOptions
from carv_3d.teachers.timed import TimedTeacher
from carv_3d.teachers.view_condition import read_rgba, without_image
from carv_3d.teachers.zero123_diffusers import Zero123DiffusersTeacher, Zero123UNet

from .common import CarvCalls, Texts, read_options, with_options
from .image_condition import ImageOptions, check_no_model_files
from .unified import CarvUnifiedGuidance
from .unified_options import UNUSED, UnifiedOptions


@threestudio.register("carv-zero123-unified-guidance")
class CarvZero123UnifiedGuidance(CarvUnifiedGuidance):
    """The objectives of threestudio's `zero123-unified-guidance`."""

    @with_options(
        GuidanceOptions,
        UnifiedOptions,
        ImageOptions,
        without=("objective", "use_sjc", "var_red", *UNUSED),
        pretrained_model_name_or_path=Zero123DiffusersTeacher.default_model,
        guidance_scale=5.0,
        cond_image_path="",
        lora_rank=4,
        lora_max_batch=4,
    )
    class Config(BaseModule.Config):
        """threestudio's own defaults."""

    cfg: Config

    def configure(self) -> None:
        """Loads the models once all options have been checked, and the image."""
        CarvCalls.configure(self)
        self._own = read_options(UnifiedOptions, self.cfg)
        self._variational = self._own.guidance_type == "vsd"
        options = read_options(VSDOptions if self._variational else GuidanceOptions, self.cfg, **self._own.named())
        check_no_model_files(options, "this is Zero123")
        given = read_options(ImageOptions, self.cfg)
        rgba = read_rgba(given.cond_image_path, needs_alpha=False)  # as in threestudio
        how = {"device": self.device, "half_precision": options.half_precision_weights}
        self._teacher = teacher = Zero123DiffusersTeacher.load(
            options.pretrained_model_name_or_path, with_text=False, **how
        )
        size = (teacher.image_size, teacher.image_size)
        teacher.look_at(np.asarray(Image.fromarray(rgba).resize(size)), given.camera)
        if not self._variational:
            self._carv = SDSGuidance(TimedTeacher(teacher, self._meter), options)
            return
        name, denoiser = options.pretrained_model_name_or_path_lora, teacher
        if name not in ("", options.pretrained_model_name_or_path):
            denoiser = Zero123UNet.load_unet(name, latents=teacher.image_latents, **how)
        self._distil(teacher, denoiser, options)

    def forward(
        self,
        rgb: torch.Tensor,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        mvp_mtx: torch.Tensor,
        c2w: torch.Tensor,
        rgb_as_latents: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A step of `SDSGuidance` or `VSDGuidance`; rgb is (B, H, W, 3), the views are (B,), the matrices (B, 4, 4)."""
        return super().forward(rgb, None, elevation, azimuth, camera_distances, mvp_mtx, c2w, rgb_as_latents)

    def _texts(self, prompt_utils: Any, *views: torch.Tensor) -> Texts:
        """The image and its camera's way to these, in the text's place."""
        condition = self._teacher.condition(*views)
        return Texts(condition, without_image(condition), None)

    def _lora_text(self, prompt_utils: Any, *views: torch.Tensor) -> torch.Tensor:
        """The LoRA is given the image as well, with and without the camera."""
        return self._teacher.condition(*views)

    def sample(self, prompt_utils: Any = None, seed: int = 0, **batch: Any) -> torch.Tensor:
        """Raises CarvError: threestudio's own has no samples to visualize either."""
        raise CarvError("visualize_samples needs a prompt, and this guidance is given an image: set it to false.")

    sample_lora = sample
