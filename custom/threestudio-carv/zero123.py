"""`guidance_type: carv-zero123-guidance` and `carv-stable-zero123-guidance`: other views of the object in one image.

The network is the one that comes with threestudio (`extern/ldm_zero123`), in single precision, as there.
"""

from dataclasses import dataclass
from typing import Any

import threestudio
import torch

from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.guidance.options import GuidanceOptions
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.io.structured import value_at
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.teachers.compvis_files import build_model, check_checkpoint, load_weights, read_model_config
from carv_3d.teachers.timed import TimedTeacher
from carv_3d.teachers.view_condition import condition_image, without_image
from carv_3d.teachers.zero123 import Zero123Teacher

from .common import CarvGuidance, read_options, with_gradient, with_options
from .image_condition import ImageOptions, check_no_model_files, check_without_text

PACKAGE = "extern.ldm_zero123"
MEND = "name the file that comes with threestudio, load/zero123/sd-objaverse-finetune-c_concat-256.yaml."
RESOLUTION = "params.first_stage_config.params.ddconfig.resolution"  # of the images of its training
WHOLE = ("model.diffusion_model.", "first_stage_model.encoder.", "first_stage_model.quant_conv.", "cc_projection.")
"""Beginnings of the names of weights without which nothing works; the image encoder brings its own."""


@dataclass(frozen=True, kw_only=True)
class Zero123Options(ImageOptions):
    """threestudio's own."""

    pretrained_config: str = option(
        "load/zero123/sd-objaverse-finetune-c_concat-256.yaml", "The configuration that goes with the weights."
    )
    vram_O: bool = option(True, "Leave the decoder out, which guidance_eval and use_img_loss need.")


@threestudio.register("carv-zero123-guidance")
class CarvZero123Guidance(CarvGuidance):
    """The objective of threestudio's `zero123-guidance`, or another of `carv_3d`'s."""

    @with_options(
        GuidanceOptions,
        Zero123Options,
        pretrained_model_name_or_path="load/zero123/105000.ckpt",
        guidance_scale=5.0,
        half_precision_weights=False,
    )
    class Config(CarvGuidance.Config):
        """threestudio's own defaults."""

        max_items_eval: int = 4

    cfg: Config
    _on_sphere = False

    def configure(self) -> None:
        """Loads the model once all options and files have been checked."""
        super().configure()
        options, own = read_options(GuidanceOptions, self.cfg), read_options(Zero123Options, self.cfg)
        check_without_text(options)
        check_no_model_files(options, "Zero123 is in CompVis'")
        decodes = options.use_recon_loss or OBJECTIVES[options.objective].image
        if own.vram_O and decodes:
            raise CarvError("use_img_loss and use_recon_loss need the decoder: set vram_O to false.")
        config, known = read_model_config(own.pretrained_config, [PACKAGE], MEND)
        size = value_at(config, RESOLUTION, int, own.pretrained_config, MEND) or 256
        image = condition_image(own.cond_image_path, size)
        name = options.pretrained_model_name_or_path
        file = check_checkpoint(name)
        averaged = known.use_ema
        config["params"] = {**config["params"], "use_ema": False}  # they are read into the model itself
        model = build_model(config, "threestudio (extern/ldm_zero123, for taming, kornia and OpenAI's clip)")
        load_weights(model, file, WHOLE, averaged)
        if own.vram_O:
            del model.first_stage_model.decoder
        self._teacher = Zero123Teacher(model.to(self.device), known.schedule, image, own.camera, self._on_sphere, name)
        self._carv = SDSGuidance(TimedTeacher(self._teacher, self._meter), options)

    def __call__(
        self,
        rgb: torch.Tensor,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A step of `SDSGuidance`; rgb is (B, H, W, 3), or x (B, h, w, 4) with 2 x - 1 as latents; views are (B,)."""
        step, epoch = self._begin(len(rgb))
        views = (elevation, azimuth, camera_distances)
        condition = self._teacher.condition(*views)
        rgb = with_gradient(rgb)
        given = rgb * 2 - 1 if rgb_as_latents else rgb
        out = self._carv(given, condition, without_image(condition), step, epoch=epoch, rgb_as_latents=rgb_as_latents)
        result = self._sds_result(out)
        return result | self._previews(out, *views) if guidance_eval else result


@threestudio.register("carv-stable-zero123-guidance")
class CarvStableZero123Guidance(CarvZero123Guidance):
    """The objective of threestudio's `stable-zero123-guidance`: the camera's last number is the image's own angle."""

    @with_options(pretrained_model_name_or_path="load/zero123/stable-zero123.ckpt")
    class Config(CarvZero123Guidance.Config):
        """The same options, for another model."""

    cfg: Config
    _on_sphere = True
