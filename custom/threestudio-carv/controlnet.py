"""`guidance_type: carv-stable-diffusion-controlnet-guidance`: Stable Diffusion that is given normals or edges."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import threestudio
import torch

from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.images import resized
from carv_3d.guidance.sds import GuidanceOptions
from carv_3d.teachers.controlnet import ControlNetTeacher
from carv_3d.teachers.parts import find_controlnet

from .common import CarvGuidance, HostOptions, with_options
from .editing import EditingGuidance, EditingOptions

Stock: Any = object
with contextlib.suppress(ImportError):  # fantasia3d-system gives the normals to instances of this class alone
    from threestudio.models.guidance.controlnet_guidance import ControlNetGuidance as Stock

CONTROLNETS = {"normal": "lllyasviel/control_v11p_sd15_normalbae", "canny": "lllyasviel/control_v11p_sd15_canny"}
ANNOTATORS = "lllyasviel/Annotators"  # weights of the detector of normals


@dataclass(frozen=True, kw_only=True)
class ControlNetOptions(EditingOptions):
    """threestudio's own, and the ControlNet's name."""

    control_type: Literal["normal", "canny"] = option("normal", "What the image is turned into: normals, or edges.")
    canny_lower_bound: int = option(50, "Of the edges.", least=0, most=2**16)
    canny_upper_bound: int = option(100, "Of the edges.", least=0, most=2**16)
    controlnet_name_or_path: str | None = option(
        None, "The ControlNet, a folder or a hub id. null: threestudio's own for control_type."
    )


@threestudio.register("carv-stable-diffusion-controlnet-guidance")
class CarvControlNetGuidance(EditingGuidance, Stock):
    """The objective and the edits of threestudio's `stable-diffusion-controlnet-guidance`."""

    @with_options(
        GuidanceOptions,
        HostOptions,
        ControlNetOptions,
        without=("view_dependent_prompting",),
        pretrained_model_name_or_path="SG161222/Realistic_Vision_V2.0",
        guidance_scale=7.5,
    )
    class Config(CarvGuidance.Config):
        """threestudio's own defaults."""

    cfg: Config
    _name = "carv-stable-diffusion-controlnet-guidance"
    _options_class = ControlNetOptions

    def _load(self, options: GuidanceOptions) -> Any:
        own = self._own
        name = own.controlnet_name_or_path or CONTROLNETS[own.control_type]
        controlnet = find_controlnet(name, "controlnet_name_or_path", own.cache_dir)
        edges = own.control_type == "canny"
        self._detect = edges_in(own.canny_lower_bound, own.canny_upper_bound) if edges else normals_in(self.device)
        return ControlNetTeacher.load_with(
            controlnet, own.condition_scale, options.pretrained_model_name_or_path, with_text=False,
            cache_dir=own.cache_dir, **options.model_files, **self._loading(),
        )  # fmt: skip

    def _check(self, rgb: torch.Tensor, cond_rgb: Any, prompt_utils: Any, rgb_as_latents: bool) -> None:
        super()._check(rgb, cond_rgb, prompt_utils, rgb_as_latents)
        if cond_rgb.shape[1:3] != rgb.shape[1:3]:
            sizes = f"{tuple(cond_rgb.shape[1:3])}, and the renders {tuple(rgb.shape[1:3])}"
            raise CarvError(f"cond_rgb has height and width {sizes}: give an image of the render's size.")

    def _conditioning(
        self, text: torch.Tensor, uncond: torch.Tensor, image: torch.Tensor, size: tuple[int, int]
    ) -> Conditioning:
        pixels = (image.permute(0, 2, 3, 1).cpu().numpy() * 255).astype("uint8")
        control = torch.stack([torch.as_tensor(self._detect(x)) for x in pixels]).permute(0, 3, 1, 2)
        return Conditioning(text, uncond, image_cond=resized(control.to(image) / 255, size))


def edges_in(low: int, high: int) -> Any:
    """A function from bytes (H, W, 3) to Canny's edges in them, blurred first as in threestudio, (H, W, 3)."""
    try:
        import cv2
    except ImportError as error:
        raise CarvError("control_type canny needs OpenCV: pip install opencv-python.") from error
    return lambda pixels: cv2.Canny(cv2.blur(pixels, ksize=(5, 5)), low, high)[..., None].repeat(3, -1)


def normals_in(device: torch.device) -> Any:
    """A function from bytes (H, W, 3) to the normals that NormalBae finds in them, (H', W', 3)."""
    import numpy

    try:
        from controlnet_aux import NormalBaeDetector
    except ImportError as error:
        raise CarvError(
            "control_type normal needs controlnet_aux: pip install controlnet_aux, or set control_type to canny."
        ) from error
    try:
        detector = NormalBaeDetector.from_pretrained(ANNOTATORS)
    except Exception as error:
        raise CarvError(f"the detector of normals, {ANNOTATORS}, cannot be loaded ({error}).") from error
    detector.model.to(device)
    return lambda pixels: numpy.array(detector(pixels))
