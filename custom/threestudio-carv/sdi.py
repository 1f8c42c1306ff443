"""`guidance_type: carv-stable-diffusion-sdi-guidance`: score distillation via inversion, see `carv_3d.guidance.sdi`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import threestudio
import torch

from carv_3d.errors import CarvError
from carv_3d.guidance.sdi import WEIGHTING, SDIGuidance, SDIOptions
from carv_3d.guidance.sds import GuidanceOutput
from carv_3d.teachers.model_folder import read_json
from carv_3d.teachers.single_file import find_folder

from .common import CarvGuidance, read_options, with_gradient, with_options
from .guidance import CarvStableDiffusionGuidance


@threestudio.register("carv-stable-diffusion-sdi-guidance")
class CarvSDIGuidance(CarvStableDiffusionGuidance):
    """The objective of threestudio's `stable-diffusion-sdi-guidance`.

    threestudio's inversion takes one render, this one any number.
    """

    @with_options(
        SDIOptions,
        pretrained_model_name_or_path="stabilityai/stable-diffusion-2-1-base",
        cfg_convention="threestudio",
        weighting_strategy="sds",
    )
    class Config(CarvStableDiffusionGuidance.Config):
        """threestudio's own defaults."""

        n_ddim_steps: int = 50

    cfg: Config

    def configure(self) -> None:
        """Loads the model once all options have been checked."""
        if self.cfg.weighting_strategy != "sds":
            raise CarvError(
                f"weighting_strategy is {self.cfg.weighting_strategy!r}, which score distillation via inversion does "
                "not have: leave it out."
            )
        options = read_options(SDIOptions, self.cfg, weighting_strategy=WEIGHTING)
        folder = find_folder(options.pretrained_model_name_or_path, model_config=options.model_config)
        CarvGuidance.configure(self)
        self._load(options, SDIGuidance, scheduler_config=read_json(folder / "scheduler" / "scheduler_config.json"))

    def __call__(
        self,
        rgb: torch.Tensor,
        prompt_utils: Any,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        test_info: bool = False,
        call_with_defined_noise: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A step of `SDIGuidance`; rgb is (B, H, W, 3), the views are (B,), a noise that is given is (B, C, h, w)."""
        carv, views, given = self._carv, (elevation, azimuth, camera_distances), call_with_defined_noise
        step, epoch = self._begin(0 if test_info else len(rgb))
        texts = self._texts(prompt_utils, *views)
        with self._meter.uncounted() if test_info else contextlib.nullcontext(), self._unmeasured(test_info):
            out = carv(
                with_gradient(rgb), texts.text, texts.uncond, step, epoch=epoch, rgb_as_latents=rgb_as_latents,
                negatives=texts.negatives, draws=None if given is None else carv.with_noise(given, step, epoch),
            )  # fmt: skip
        # threestudio's loss is a mean over all elements, divided by the renders once more
        losses = {"loss_sdi": out.loss_sds / out.latents.numel(), "loss_recon": out.loss_recon}
        result = self._result(losses, out.scalars, out)
        if test_info:
            return result | self._info(out)
        return result | self._previews(out, *views) if guidance_eval else result

    @contextlib.contextmanager
    def _unmeasured(self, is_test: bool) -> Iterator[None]:
        """Within, K is not measured: a test's render has no gradient in the scene."""
        auto = self._carv.auto
        self._carv.auto = None if is_test else auto
        try:
            yield
        finally:
            self._carv.auto = auto

    @torch.no_grad()
    def _info(self, out: GuidanceOutput) -> dict[str, torch.Tensor]:
        """What sdi-system shows in a validation, of the first draw of the first render; images are (H, W, 3)."""
        carv, estimate, z = self._carv, out.estimate, out.latents.detach()
        t, eps, f = estimate.t[:, 0], estimate.eps[:, 0], estimate.residual[:, 0]
        shown = {"target": z - f, "noisy_img": carv.estimator.schedule.add_noise(z, eps, t), "noise_img": eps}
        images = {name: carv.teacher.decode(x[:1])[0].permute(1, 2, 0) for name, x in shown.items()}
        w = carv.weights.to(f)[t].view(-1, 1, 1, 1)
        return {**images, "target_latent": shown["target"], "noise_pred": eps + f / w}
