"""`guidance_type: carv-vsd-guidance`: threestudio's calls to `carv_3d`'s variational score distillation.

The LoRA is a submodule, so threestudio optimizes it (`optimizer.params.guidance`) and saves it; UNets and VAE are not.
The system must build its guidance before its optimizer, as prolificdreamer-system does.
"""

from collections.abc import Callable
from typing import Any

import threestudio
import torch
from threestudio.utils.base import BaseModule

from carv_3d.config.annealing import annealed
from carv_3d.errors import CarvError
from carv_3d.guidance.sampling import sample_images
from carv_3d.guidance.vsd import VSDGuidance, VSDOptions, VSDOutput
from carv_3d.teachers.denoiser import load_denoiser
from carv_3d.teachers.lora_score import LoraScore, check_pair
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.timed import TimedTeacher

from .common import CarvCalls, HostOptions, camera_condition, read_options, with_options

MAX_UNTRAINED_STEPS = 20
VIEWS = ("elevation", "azimuth", "camera_distances")  # of a threestudio batch


@threestudio.register("carv-vsd-guidance")
class CarvVSDGuidance(CarvCalls, BaseModule):
    """Variational score distillation, and the LoRA that threestudio trains."""

    @with_options(
        VSDOptions,
        HostOptions,
        pretrained_model_name_or_path="stabilityai/stable-diffusion-2-1-base",
        pretrained_model_name_or_path_lora="stabilityai/stable-diffusion-2-1",
    )
    class Config(BaseModule.Config):
        """threestudio's own defaults."""

    cfg: Config
    _lambda, _untrained_steps = "lambda_lora", 0

    def configure(self) -> None:
        """Loads the models once all options have been checked."""
        super().configure()
        self._load(read_options(VSDOptions, self.cfg))

    def _load(self, options: VSDOptions, **how_teacher: Any) -> None:
        how = self._loading()
        names = (options.pretrained_model_name_or_path, options.pretrained_model_name_or_path_lora)
        teacher = StableDiffusionTeacher.load(names[0], with_text=False, **options.model_files, **how, **how_teacher)
        self._distil(teacher, teacher if names[1] in ("", names[0]) else load_denoiser(names[1], **how), options)

    def _distil(self, teacher: Any, denoiser: Any, options: VSDOptions) -> None:
        check_pair(teacher, denoiser)
        score = LoraScore(denoiser, options.lora_rank, options.camera_width)
        self.lora, self._carv = score.lora, VSDGuidance(TimedTeacher(teacher, self._meter), score, options, self._meter)

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
        """A step of `VSDGuidance`; rgb is (B, H, W, 3), the views are (B,), the matrices (B, 4, 4)."""
        out = self._step(rgb, prompt_utils, (elevation, azimuth, camera_distances), mvp_mtx, c2w, rgb_as_latents)
        losses = {"loss_vsd": out.loss_vsd, "loss_lora": out.loss_lora, "loss_vsd_img": out.loss_vsd_img}
        return self._result(losses, out.scalars, out.sds)

    def _step(self, rgb: Any, prompt_utils: Any, views: Any, mvp_mtx: Any, c2w: Any, rgb_as_latents: bool) -> VSDOutput:
        texts, lora_text = self._texts(prompt_utils, *views), self._lora_text(prompt_utils, *views)
        camera = camera_condition(self._carv.options.camera_condition_type, views, mvp_mtx, c2w)
        out = self._carv(
            rgb, texts.text, texts.uncond, lora_text, camera, *self._begin(len(rgb)),
            rgb_as_latents=rgb_as_latents, negatives=texts.negatives,
        )  # fmt: skip
        self._count_untrained()
        return out

    @staticmethod
    def _lora_text(prompt_utils: Any, *views: torch.Tensor) -> torch.Tensor:
        """(B, L, D), the same from every side, as in threestudio."""
        return prompt_utils.get_text_embeddings(*views, False).chunk(2)[0]

    def _count_untrained(self) -> None:
        """A LoRA that no optimizer has would leave score distillation against the pretrained model, in silence."""
        self._untrained_steps += 1
        if self._untrained_steps == MAX_UNTRAINED_STEPS + 1 and self.lora.untouched:
            raise CarvError(
                f"the LoRA is untrained after {MAX_UNTRAINED_STEPS} steps: give it optimizer.params.guidance.lr=0.0001 "
                f"and a {self._lambda} above 0, in a system that builds its guidance first, as prolificdreamer-system."
            )

    def sample(self, prompt_utils: Any, seed: int = 0, **batch: Any) -> torch.Tensor:
        """The teacher's own images (B, H, W, 3) of the prompt, for `visualize_samples`; batch: as for a step."""
        views = [batch[name] for name in VIEWS]
        embeddings = prompt_utils.get_text_embeddings(*views, self.cfg.view_dependent_prompting)
        cond, carv = embeddings.chunk(2), self._carv.sds
        scale = annealed(carv.options.guidance_scale, *self._when)
        return self._images(lambda z, t: carv.eps_hat(z, t, cond, scale), len(views[0]), seed)

    def sample_lora(self, prompt_utils: Any, seed: int = 0, **batch: Any) -> torch.Tensor:
        """What the LoRA takes the renders from these cameras for, (B, H, W, 3), for `visualize_samples`."""
        views, carv = [batch[name] for name in VIEWS], self._carv
        text = self._lora_text(prompt_utils, *views)
        camera = camera_condition(carv.options.camera_condition_type, views, batch["mvp_mtx"], batch["c2w"])
        camera, scale = camera.flatten(1).float(), annealed(carv.options.guidance_scale_lora, *self._when)
        return self._images(lambda z, t: carv.lora_eps_hat(z, t, text, camera, scale), len(views[0]), seed)

    def _images(self, eps_hat: Callable[..., torch.Tensor], n: int, seed: int) -> torch.Tensor:
        with self._meter.uncounted():
            return sample_images(self._carv.sds.teacher, eps_hat, n, seed=seed)
