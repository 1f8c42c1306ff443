"""`guidance_type: carv-vsd-guidance`: threestudio's calls to `carv_3d`'s variational score distillation.

The LoRA is a submodule, so threestudio optimizes it (`optimizer.params.guidance`) and keeps it in its checkpoints; the
UNets and the VAE are not, so they are in neither. For that the system must build its guidance before its optimizer, as
prolificdreamer-system does.
"""

from dataclasses import dataclass
from typing import Any

import threestudio
import torch
from threestudio.utils.base import BaseModule

from carv_3d.config.annealing import annealed
from carv_3d.errors import CarvError
from carv_3d.guidance.sampling import sample_images
from carv_3d.guidance.vsd import VSDGuidance, VSDOptions
from carv_3d.teachers.denoiser import load_denoiser
from carv_3d.teachers.lora_score import LoraScore, check_pair
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvCalls, embeddings, read_options

MAX_UNTRAINED_STEPS = 20


@threestudio.register("carv-vsd-guidance")
class CarvVSDGuidance(CarvCalls, BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        # threestudio's, with its names and defaults
        pretrained_model_name_or_path: str = "stabilityai/stable-diffusion-2-1-base"
        pretrained_model_name_or_path_lora: str = "stabilityai/stable-diffusion-2-1"
        enable_memory_efficient_attention: bool = False
        enable_sequential_cpu_offload: bool = False
        enable_attention_slicing: bool = False
        enable_channels_last_format: bool = False
        guidance_scale: Any = 7.5
        guidance_scale_lora: Any = 1.0
        grad_clip: Any = None
        half_precision_weights: bool = True
        lora_cfg_training: bool = True
        lora_n_timestamp_samples: int = 1
        min_step_percent: Any = 0.02
        max_step_percent: Any = 0.98
        sqrt_anneal: bool = False
        trainer_max_steps: int = 25000
        use_img_loss: bool = False
        view_dependent_prompting: bool = True
        camera_condition_type: str = "extrinsics"

        # carv_3d's; each is explained in carv_3d/guidance/options.py and carv_3d/guidance/vsd_options.py
        weighting_strategy: str = "sds"
        num_draws: Any = 4
        proposal: str = "weight"
        stratify: str = "render"
        antithetic: bool = False
        max_batch: int = 16
        lora_max_batch: int = 4
        lora_rank: int = 4
        vae_sample: Any = True
        cfg_convention: str = "standard"
        seed: Any = None

    cfg: Config

    def configure(self) -> None:
        super().configure()
        options = read_options(VSDOptions, self.cfg)  # checked before a model is loaded
        how = self._loading()
        names = (options.pretrained_model_name_or_path, options.pretrained_model_name_or_path_lora)
        teacher = StableDiffusionTeacher.load(names[0], with_text=False, **how)
        denoiser = teacher if names[1] in ("", names[0]) else load_denoiser(names[1], **how)
        check_pair(teacher, denoiser)
        lora_score = LoraScore(denoiser, options.lora_rank)
        self.lora = lora_score.lora
        self._untrained_steps = 0
        self._carv = VSDGuidance(TimedTeacher(teacher, self._meter), lora_score, options, self._meter)

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
        epoch, step = self._begin(len(rgb))
        views = (elevation, azimuth, camera_distances)
        text, uncond, negatives = embeddings(prompt_utils, (*views, self.cfg.view_dependent_prompting))
        own_text, _ = prompt_utils.get_text_embeddings(*views, False).chunk(2)
        camera = self._camera(mvp_mtx, c2w)
        out = self._carv(
            rgb, text, uncond, own_text, camera, step, epoch=epoch, rgb_as_latents=rgb_as_latents, negatives=negatives
        )
        result: dict[str, Any] = {"loss_vsd": out.loss_vsd, "loss_lora": out.loss_lora, **out.scalars}
        if out.loss_vsd_img is not None:
            result["loss_vsd_img"] = out.loss_vsd_img
        result["grad_norm"] = float(out.sds.estimate.grad.norm())  # over the batch, as threestudio logs it
        result.update(self._costs())
        self._count_untrained()
        return result

    def _camera(self, mvp_mtx: torch.Tensor, c2w: torch.Tensor) -> torch.Tensor:
        return c2w if self.cfg.camera_condition_type == "extrinsics" else mvp_mtx

    def _count_untrained(self) -> None:
        """A LoRA that no optimizer has would leave score distillation against the pretrained model, in silence."""
        self._untrained_steps += 1
        if self._untrained_steps == MAX_UNTRAINED_STEPS + 1 and self.lora.untouched:
            raise CarvError(
                f"the LoRA of carv-vsd-guidance is untrained after {MAX_UNTRAINED_STEPS} steps: give it a learning "
                "rate (optimizer.params.guidance.lr=0.0001) and a lambda_lora above 0, in a system that builds "
                "its guidance before its optimizer, such as prolificdreamer-system."
            )

    def sample(
        self,
        prompt_utils: Any,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        seed: int = 0,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The teacher's own images (B, H, W, 3) of the prompt, for `visualize_samples`."""
        carv, (epoch, step) = self._carv.sds, self._when
        views = (elevation, azimuth, camera_distances, self.cfg.view_dependent_prompting)
        text, uncond = prompt_utils.get_text_embeddings(*views).chunk(2)
        scale = annealed(self._carv.options.guidance_scale, step, epoch)
        with self._meter.uncounted():
            return sample_images(
                carv.teacher, lambda z, t: carv.eps_hat(z, t, (text, uncond), scale), len(elevation), seed=seed
            )

    def sample_lora(
        self,
        prompt_utils: Any,
        elevation: torch.Tensor,
        azimuth: torch.Tensor,
        camera_distances: torch.Tensor,
        mvp_mtx: torch.Tensor,
        c2w: torch.Tensor,
        seed: int = 0,
        **kwargs: Any,
    ) -> torch.Tensor:
        """What the LoRA takes the renders from these cameras for, (B, H, W, 3), for `visualize_samples`."""
        text, _ = prompt_utils.get_text_embeddings(elevation, azimuth, camera_distances, False).chunk(2)
        camera = self._camera(mvp_mtx, c2w).flatten(1).float()
        carv, (epoch, step) = self._carv, self._when
        scale = annealed(carv.options.guidance_scale_lora, step, epoch)

        def eps_hat(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return carv.lora_eps_hat(z, t, text, camera, scale)

        with self._meter.uncounted():
            return sample_images(carv.sds.teacher, eps_hat, len(elevation), seed=seed)
