"""Zero123 in diffusers' format (bennyguo/zero123-diffusers), a frozen teacher: new views of the object in one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.io.tensor_files import load_tensors
from carv_3d.teachers.availability import resolve_model
from carv_3d.teachers.families import ZERO123
from carv_3d.teachers.image_given import ImageInChannels
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher
from carv_3d.teachers.loading import choose_dtype, load_schedule, load_weights
from carv_3d.teachers.model_folder import MEND, read_json, weight_files
from carv_3d.teachers.view_condition import ImageCamera, on_white, split_condition, with_image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Zero123UNet(ImageInChannels):
    """A UNet that is given the image's latents next to the noisy ones; see `view_condition` for its condition."""

    image_latents: Tensor  # (1, C, h, w), unscaled, as it was trained

    @classmethod
    def load_unet(cls, name_or_path: str, device: torch.device, half_precision: bool, latents: Tensor) -> Zero123UNet:
        """The UNet of another model alone.

        Args:
            name_or_path: see `LatentDiffusionTeacher.load`; so are the next two, and what is raised.
            device: of the UNet.
            half_precision: float16, on CUDA only.
            latents: (1, C, h, w), the image's.
        """
        import diffusers

        folder = resolve_model(name_or_path, family=ZERO123)
        dtype, schedule = choose_dtype(device, half_precision), load_schedule(folder)
        unet = load_weights(diffusers, ZERO123.classes["unet"], folder, "unet", dtype).to(device)
        made = cls(unet, schedule, str(schedule.prediction_type), name_or_path)
        made.image_latents = latents
        return made

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The UNet's arguments for conditions (N, 1, D + 1), and as `image` what stands next to its input."""
        embedding, latents = split_condition(text_emb, self.image_latents)
        return {**super().conditions(embedding), "image": latents.to(self.dtype)}


class Zero123DiffusersTeacher(Zero123UNet, LatentDiffusionTeacher):
    """A `carv_3d.teachers.base.Teacher` whose condition is `condition`'s, once it has been given an image."""

    family = ZERO123
    default_model = "bennyguo/zero123-diffusers"

    def __init__(self, folder: Path, unet: Any, vae: Any, schedule: NoiseSchedule, **known: Any) -> None:
        """Parts that are already on one device, see `LatentDiffusionTeacher`; `folder` has the image encoder."""
        super().__init__(unet, vae, schedule, **known)
        self.folder = folder

    @classmethod
    def _from_parts(cls, folder: Path, parts: dict[str, Any], **known: Any) -> Zero123DiffusersTeacher:
        return cls(folder, parts["unet"], parts["vae"], **known)

    @torch.no_grad()
    def look_at(self, rgba: np.ndarray, camera: ImageCamera) -> None:
        """Take an image as the condition; the image encoder is loaded for it, and not kept.

        Args:
            rgba: (S, S, 4) in 0 .. 255, S the size of the model's images.
            camera: where it was taken from.

        Raises:
            CarvError: the image encoder or the projection cannot be read.
        """
        import transformers

        image = on_white(rgba)
        kind = ZERO123.classes["image_encoder"]
        encoder = load_weights(transformers, kind, self.folder, "image_encoder", self.dtype).to(self.device).eval()
        pixels = clip_pixels(image, read_json(self.folder / "feature_extractor" / "preprocessor_config.json"))
        self.camera = camera
        self.image_latents = self.encode(image.to(self.device), sample=False) / self._scaling
        self.image_embedding: Tensor = encoder(pixels.to(self.device, self.dtype)).image_embeds[:, None]
        (file,) = weight_files(self.folder, "clip_camera_projection")
        weights = load_tensors(file, MEND)
        self._projection = [weights.get(f"proj.{name}", torch.empty(0)) for name in ("weight", "bias")]
        D, width = self.network.config.cross_attention_dim, self.image_embedding.shape[-1] + 4
        if [tuple(x.shape) for x in self._projection] != [(D, width), (D,)]:
            raise CarvError(f"{file} holds no projection from {width} numbers to {D}; {MEND}")
        self._projection = [x.to(self.device, self.dtype) for x in self._projection]

    @torch.no_grad()
    def condition(self, elevation: Tensor, azimuth: Tensor, distances: Tensor) -> Tensor:
        """What goes with renders from these cameras; `without_image` makes it that of none.

        Args:
            elevation: (B,) in degrees.
            azimuth: (B,) in degrees.
            distances: (B,).

        Returns:
            (B, 1, D + 1), see `view_condition`.
        """
        move = self.camera.move(*(x.to(self.device).float() for x in (elevation, azimuth, distances)))
        both = torch.cat([self.image_embedding.expand(len(move), -1, -1), move[:, None].to(self.dtype)], dim=-1)
        return with_image(F.linear(both, *self._projection))


def clip_pixels(image: Tensor, config: dict[str, Any]) -> Tensor:
    """What CLIP's image processor makes of a square image, by Pillow, as transformers' own without torchvision.

    Args:
        image: (1, 3, S, S) in [0, 1].
        config: of the processor.

    Returns:
        (1, 3, s, s), s the encoder's size.
    """
    from PIL import Image

    size = config.get("size", 224)
    side = size if isinstance(size, int) else int(size.get("shortest_edge", size.get("height", 224)))
    levels = (image[0] * 255).byte().permute(1, 2, 0).cpu().numpy()  # rounded down, as torchvision's to_pil_image
    small = Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255.0
    mean, std = (torch.tensor(config.get(name, value)).view(1, 3, 1, 1) for name, value in
                 (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))  # fmt: skip
    return (pixels - mean) / std
