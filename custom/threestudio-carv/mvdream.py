"""`guidance_type: carv-mvdream-multiview-diffusion-guidance`: several views of the object at once, by MVDream.

The network is that of the package `mvdream`, which the extension threestudio-mvdream needs too, in single precision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import threestudio
import torch

from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.guidance.mvdream_options import MVDreamOptions
from carv_3d.guidance.options import ViewPromptOptions
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.teachers.mvdream import MVDreamTeacher, normalized_cameras
from carv_3d.teachers.mvdream_files import load_mvdream
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvGuidance, read_options, with_options
from .image_condition import check_without_text


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ViewPromptOptions, defaults={"view_dependent_prompting": False}):
    """threestudio-mvdream's own."""

    model_name: str = option("sd-v2.1-base-4view", "A name in the package's table of models.")
    ckpt_path: str | None = option(None, "The file of the weights. null: from the hub.")
    camera_condition_type: Literal["rotation"] = option("rotation", "What the network is given of the camera.")
    n_view: int = option(4, "V, neighboring renders that are one object.", least=1, most=64)
    image_size: int = option(256, "The side of a view in pixels.", least=8, most=4096)


@threestudio.register("carv-mvdream-multiview-diffusion-guidance")
class CarvMVDreamGuidance(CarvGuidance):
    """The objective of `mvdream-multiview-diffusion-guidance`, or another of `carv_3d`'s."""

    @with_options(
        MVDreamOptions,
        ModelOptions,
        without=("pretrained_model_name_or_path", "model_config", "vae", "loras"),
        max_batch=4,
    )
    class Config(CarvGuidance.Config):
        """threestudio-mvdream's own defaults; max_batch counts objects."""

    cfg: Config

    def configure(self) -> None:
        """Loads the model once all options have been checked."""
        super().configure()
        options, self._own = read_options(MVDreamOptions, self.cfg), read_options(ModelOptions, self.cfg)
        check_without_text(options)
        own = self._own
        model = load_mvdream(own.model_name, own.ckpt_path).to(self.device)
        self._teacher = MVDreamTeacher(model, own.image_size, own.n_view, own.model_name)
        self._carv = SDSGuidance(TimedTeacher(self._teacher, self._meter), options)

    def __call__(
        self,
        rgb: torch.Tensor,
        prompt_utils: Any,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        c2w: torch.Tensor,
        rgb_as_latents: bool = False,
        fovy: Any = None,
        timestep: int | None = None,
        text_embeddings: torch.Tensor | None = None,
        input_is_latent: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A step of `SDSGuidance`, of B / V objects.

        rgb is (B, H, W, 3), or x (B, h, w, 4) with 2 x - 1 as latents, or latents (B, 4, h, w) if input_is_latent. The
        views are (B,), c2w (B, 4, 4), text_embeddings (2 B, L, D) for the prompt's, and a timestep for all draws.
        """
        V = self._own.n_view
        if len(rgb) % V:
            raise CarvError(
                f"a step has {len(rgb)} renders, no multiple of n_view, which is {V}: set data.n_view to {V}."
            )
        step, epoch = self._begin(len(rgb))
        if input_is_latent:
            rgb = rgb.permute(0, 2, 3, 1)
        elif rgb_as_latents:
            rgb = rgb * 2 - 1
        if text_embeddings is None:
            views = (elevation, azimuth, camera_distances, self._own.view_dependent_prompting)
            text_embeddings = prompt_utils.get_text_embeddings(*views)
        camera = normalized_cameras(c2w)
        text, uncond = (self._teacher.condition(x, camera) for x in text_embeddings.chunk(2))
        given = rgb.unflatten(0, (-1, V)).permute(0, 2, 3, 1, 4).flatten(3)  # (B / V, H, W, V 3)
        as_latents = rgb_as_latents or input_is_latent
        with self._only(timestep):
            out = self._carv(given, text, uncond, step, epoch=epoch, rgb_as_latents=as_latents)
        # the stock loss is a mean over views
        losses = {"loss_sds": out.loss_sds, "loss_sds_img": out.loss_sds_img}
        losses = {name: None if loss is None else loss / V for name, loss in losses.items()}
        return self._result({**losses, "loss_recon": out.loss_recon}, out.scalars, out)

    @contextmanager
    def _only(self, timestep: int | None) -> Iterator[None]:
        """Within it, all draws are at this timestep, unless it is None."""
        options = self._carv.options
        if timestep is not None:
            share = (timestep + 0.5) / self._teacher.schedule.num_train_timesteps
            self.set_min_max_steps(share, share)
        try:
            yield
        finally:
            self._carv.options = options
