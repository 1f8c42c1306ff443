"""`guidance_type: carv-stable-diffusion-unified-guidance`: score distillation or its variational kind, by one option.

threestudio's draws one timestep for all renders of a step, this one K for each: the marginal of each render's draws is
the same, and with it the expectation of the gradient. What is returned for images is of each render's first draw.
"""

from dataclasses import field
from typing import Any

import threestudio
import torch
from threestudio.utils.base import BaseModule

from carv_3d.guidance.sampling import denoise
from carv_3d.guidance.sds import GuidanceOptions, GuidanceOutput, SDSGuidance
from carv_3d.guidance.vsd import VSDOptions
from carv_3d.teachers.loading import merge_tokens
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvCalls, HostOptions, read_options, with_options
from .unified_options import UnifiedOptions
from .vsd import CarvVSDGuidance


@threestudio.register("carv-stable-diffusion-unified-guidance")
class CarvUnifiedGuidance(CarvVSDGuidance):
    """The objectives of threestudio's `stable-diffusion-unified-guidance`."""

    @with_options(
        GuidanceOptions,
        HostOptions,
        UnifiedOptions,
        without=("objective", "use_sjc", "var_red"),  # guidance_type and use_img_loss say what is distilled
        pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5",
        use_img_loss=True,
        lora_rank=4,
        lora_max_batch=4,
    )
    class Config(BaseModule.Config):
        """threestudio's own defaults."""

        token_merging: bool = False
        token_merging_params: Any = field(default_factory=dict)

    cfg: Config
    _lambda = "lambda_train_phi"

    def configure(self) -> None:
        """Loads the models once all options have been checked."""
        CarvCalls.configure(self)
        self._own = read_options(UnifiedOptions, self.cfg)
        self._variational = self._own.guidance_type == "vsd"
        options = read_options(VSDOptions if self._variational else GuidanceOptions, self.cfg, **self._own.named())
        merging = dict(self.cfg.token_merging_params or {}) if self.cfg.token_merging else None
        if self._variational:
            self._load(options, token_merging=merging)
            denoiser = self._carv.lora_score.denoiser
            if merging is not None and denoiser.unet is not self._carv.sds.teacher.unet:
                merge_tokens(denoiser.unet, merging)
            return
        how = {**self._loading(), **options.model_files, "token_merging": merging}
        teacher = StableDiffusionTeacher.load(options.pretrained_model_name_or_path, with_text=False, **how)
        self._carv = SDSGuidance(TimedTeacher(teacher, self._meter), options)

    def forward(
        self,
        rgb: torch.Tensor,
        prompt_utils: Any,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        mvp_mtx: torch.Tensor,
        c2w: torch.Tensor,
        rgb_as_latents: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A step of `SDSGuidance` or `VSDGuidance`; rgb is (B, H, W, 3), the views are (B,), the matrices (B, 4, 4)."""
        views = (elevation, azimuth, camera_distances)
        if self._variational:
            step = self._step(rgb, prompt_utils, views, mvp_mtx, c2w, rgb_as_latents)
            out, scalars, phi = step.sds, step.scalars, {"loss_train_phi": step.loss_lora}
        else:
            texts = self._texts(prompt_utils, *views)
            step, epoch = self._begin(len(rgb))
            out = self._carv(
                rgb, texts.text, texts.uncond, step, epoch=epoch, rgb_as_latents=rgb_as_latents,
                negatives=texts.negatives,
            )  # fmt: skip
            scalars, phi = out.scalars, {"loss_recon": out.loss_recon}
        losses = {"loss_sd": out.loss_sds, "loss_sd_img": out.loss_sds_img, **phi}
        return {**self._result(losses, scalars, out), "rgb": rgb, **self._first_draws(out)}

    @torch.no_grad()
    def _first_draws(self, out: GuidanceOutput) -> dict[str, torch.Tensor]:
        """What threestudio's returns besides the losses, of the first draw of each render; images where asked for."""
        own, carv = self._own, self._carv.sds if self._variational else self._carv
        teacher, t, eps = carv.teacher, out.estimate.t[:, 0], out.estimate.eps[:, 0]
        schedule, w = carv.estimator.schedule, carv.weights.to(t.device)[t].view(-1, 1, 1, 1)
        sigma_over_alpha = schedule.sigma(t) / schedule.alpha(t)
        shown = {"timesteps": t, "weights": w, "lambdas": sigma_over_alpha, "latents": out.latents}
        steps = {"1step": 1} if own.return_rgb_1step_orig else {}
        if own.return_rgb_multistep_orig:
            steps["multistep"] = own.n_rgb_multistep_orig_steps
        if not steps:
            return shown
        z_t = schedule.add_noise(out.latents.detach(), eps, t)
        for name, n in steps.items():
            with self._meter.uncounted():
                z = denoise(schedule, lambda z, t: carv.predict(z, t, out.cond, out.scale).guided, z_t, t, n)
                shown |= {f"latents_{name}_orig": z, f"rgb_{name}_orig": teacher.decode(z).permute(0, 2, 3, 1)}
        return shown
