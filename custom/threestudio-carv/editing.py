"""What the guidances share that are given an image next to each render: ControlNet's and InstructPix2Pix's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import threestudio
import torch

from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError
from carv_3d.guidance.cfg import Conditioning
from carv_3d.guidance.editing import edit_images
from carv_3d.guidance.sds import GuidanceOptions, SDSGuidance
from carv_3d.objectives.table import OBJECTIVES
from carv_3d.teachers.parts import find_ddim
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvGuidance, read_options, with_gradient


@dataclass(frozen=True, kw_only=True)
class EditingOptions(Options):
    """threestudio's own, of both types."""

    cache_dir: str | None = option(None, "Of the hub's files. null: the hub's own place.")
    ddim_scheduler_name_or_path: str = option(
        "runwayml/stable-diffusion-v1-5", "The model whose noise schedule is taken, a diffusers folder or a hub id."
    )
    condition_scale: float = option(1.5, "How strongly the image pulls.", least=-1e6, most=1e6)
    fixed_size: int = option(-1, "The side that renders are resized to. 0 or less: their own.", least=-1, most=2**16)
    diffusion_steps: int = option(20, "DDIM's steps of an edit.", least=1, most=1000)
    use_sds: bool = option(False, "Score distillation, loss_sds. false: an edit of the render, edit_images.")


class EditingGuidance(CarvGuidance):
    """A guidance whose calls have `cond_rgb` next to the render. Subclasses have `_load` and `_conditioning`."""

    _name: str
    _options_class: type[EditingOptions] = EditingOptions

    def configure(self) -> None:
        """Loads the model once all options have been checked."""
        super().configure()
        options, self._own = self._guidance_options(), read_options(self._options_class, self.cfg)
        if "negative" in OBJECTIVES[options.objective].needs:
            raise CarvError(
                f"the objective {options.objective} needs a negative prompt next to the empty one, and {self._name} "
                "is given one of the two: take sds."
            )
        ddim = find_ddim(self._own.ddim_scheduler_name_or_path, self._own.cache_dir)
        self._teacher = self._load(options)
        self._ddim = replace(ddim, schedule=ddim.schedule.to(self._teacher.device))
        self._teacher.schedule = self._ddim.schedule
        fixed, factor = self._own.fixed_size, self._teacher.vae_factor
        if fixed > 0 and fixed % factor:
            raise CarvError(f"fixed_size is {fixed}; it must be a multiple of {factor}, as the VAE takes images.")
        if not self._own.use_sds:
            threestudio.info(f"{self._name} edits renders, since use_sds is false: num_draws (K) is not used.")
        self._carv = SDSGuidance(TimedTeacher(self._teacher, self._meter), options)

    def _guidance_options(self) -> Any:
        return read_options(GuidanceOptions, self.cfg)

    def _load(self, options: GuidanceOptions) -> Any:
        """The teacher."""
        raise NotImplementedError

    def _conditioning(
        self, text: torch.Tensor, uncond: torch.Tensor, image: torch.Tensor, size: tuple[int, int]
    ) -> Conditioning:
        """What goes with the renders: text (1, L, D), and an image (B, 3, H, W) that is to have this size."""
        raise NotImplementedError

    def __call__(
        self, rgb: torch.Tensor, cond_rgb: Any = None, prompt_utils: Any = None, rgb_as_latents: bool = False, **_: Any
    ) -> dict[str, Any]:
        """loss_sds or edit_images (B, H, W, 3), of rgb and cond_rgb (B, H, W, 3); one prompt for all views."""
        self._check(rgb, cond_rgb, prompt_utils, rgb_as_latents)
        step, epoch = self._begin(len(rgb))
        factor, fixed = self._teacher.vae_factor, self._own.fixed_size
        height, width = (fixed if fixed > 0 else max(n // factor, 1) * factor for n in rgb.shape[1:3])
        size, anywhere = (height, width), torch.zeros(1, device=rgb.device)
        text, uncond = prompt_utils.get_text_embeddings(anywhere, anywhere, anywhere, False).chunk(2)
        cond = self._conditioning(text, uncond, cond_rgb.detach().permute(0, 3, 1, 2), size)
        if not self._own.use_sds:
            steps = self._own.diffusion_steps
            edited = edit_images(self._carv, rgb, cond, step, ddim=self._ddim, num_steps=steps, epoch=epoch, size=size)
            return {"edit_images": edited}
        out = self._carv.guide(with_gradient(rgb), cond, step, epoch=epoch, size=size)
        return self._sds_result(out)

    def _check(self, rgb: torch.Tensor, cond_rgb: Any, prompt_utils: Any, rgb_as_latents: bool) -> None:
        if rgb_as_latents:
            raise CarvError(f"{self._name} takes images, and this system renders latents: take another guidance.")
        if not isinstance(cond_rgb, torch.Tensor) or prompt_utils is None:
            raise CarvError(
                f"{self._name} needs cond_rgb, an image for each render, and this system gives none: take one that "
                "does, such as instructnerf2nerf-system or control4d-multiview-system."
            )
        if cond_rgb.dim() != 4 or (len(cond_rgb), cond_rgb.shape[-1]) != (len(rgb), 3):
            shapes = f"{tuple(cond_rgb.shape)} and the renders {tuple(rgb.shape)}"
            raise CarvError(f"cond_rgb has the shape {shapes}: give one image (H, W, 3) for each render.")
