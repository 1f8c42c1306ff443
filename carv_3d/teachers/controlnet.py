"""Stable Diffusion with a ControlNet (arXiv 2302.05543): every prediction is given an image of what is where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.image_given import ImageGiven
from carv_3d.teachers.loading import load_weights, offload_to_cpu
from carv_3d.teachers.parts import CONTROLNET
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


class ControlNetTeacher(ImageGiven, StableDiffusionTeacher):
    """A teacher whose `eps_hat(z_t, t, text, image)` takes an image (N, 3, H, W) in [0, 1], as large as renders."""

    controlnet: Any = None
    condition_scale = 1.0

    @classmethod
    def load_with(cls, controlnet: Path, condition_scale: float, name: str, **options: Any) -> ControlNetTeacher:
        """A Stable Diffusion model and its ControlNet.

        Args:
            controlnet: the folder, as `find_controlnet` gives it.
            condition_scale: what the ControlNet adds to the UNet is multiplied by this.
            name: of the Stable Diffusion model.
            **options: of `load`.

        Raises:
            CarvError: as `load`, or the two are not of one kind.
        """
        import diffusers

        teacher = cls.load(name, **options)
        network = (
            load_weights(diffusers, CONTROLNET, controlnet.parent, controlnet.name, teacher.dtype)
            .eval()
            .requires_grad_(False)
        )
        own, other = (part.config.cross_attention_dim for part in (teacher.unet, network))
        if own != other:
            raise CarvError(
                f"the ControlNet in {controlnet} takes text of width {other} and the UNet of {name} takes {own}: "
                "name a ControlNet of this kind of Stable Diffusion."
            )
        if options.get("attention_slicing"):
            network.set_attention_slice(1)
        if options.get("cpu_offload") and teacher.device.type == "cuda":
            offload_to_cpu([network], teacher.device)
        else:
            network = network.to(teacher.device)
        teacher.controlnet, teacher.condition_scale = network, condition_scale
        return teacher

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The UNet's output with the ControlNet's residuals: (N, C, h, w), (N,) -> (N, C, h, w)."""
        text = {name: value for name, value in conditions.items() if name != "image"}
        down, middle = self.controlnet(
            given, time, controlnet_cond=conditions["image"], conditioning_scale=self.condition_scale,
            return_dict=False, **text,
        )  # fmt: skip
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return super().run_network(given, time, {**text, **more})
