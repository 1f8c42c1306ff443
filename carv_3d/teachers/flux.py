"""Any diffusers FLUX.1 model as a frozen teacher; flow matching, with an embedded guidance that was distilled."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.teachers.families import FLUX
from carv_3d.teachers.packed_text import PackedTextTeacher
from carv_3d.teachers.tokens import context_length
from carv_3d.teachers.xl_text import pack

log = logging.getLogger(__name__)

T5_TOKENS = 512  # diffusers' max_sequence_length
PATCH = 2


class FluxTeacher(PackedTextTeacher):
    """A `carv_3d.teachers.base.Teacher` whose network takes 2 x 2 latents as one token, and the guidance as a number.

    Attributes:
        distilled_guidance: that number, 3.5 as in diffusers. The guidance scale of `carv_3d.guidance` comes on top:
            1 leaves it out.
    """

    family = FLUX
    default_model = "black-forest-labs/FLUX.1-dev"
    distilled_guidance = 3.5

    def __init__(
        self, network: Any, vae: Any, schedule: NoiseSchedule, prediction_type: str = "flow_prediction", name: str = "",
        **more: Any,
    ) -> None:  # fmt: skip
        """As `PackedTextTeacher`; a model without embedded guidance, as FLUX.1-schnell, is named in the log."""
        super().__init__(network, vae, schedule, prediction_type, name, **more)
        if not network.config.guidance_embeds:
            log.warning(
                "%s has no embedded guidance, as FLUX.1-schnell: if it was distilled to a few steps, it is a poor "
                "teacher at other noise levels; take FLUX.1-dev.", name or "this model",
            )  # fmt: skip

    @classmethod
    def load(cls, *name: Any, distilled_guidance: float = 3.5, **options: Any) -> FluxTeacher:
        """Finds, checks and loads a model.

        Args:
            *name: of the model, as of `LatentDiffusionTeacher.load`.
            distilled_guidance: what the network is given as its guidance.
            **options: of `LatentDiffusionTeacher.load`.

        Raises:
            CarvError: as `LatentDiffusionTeacher.load`.
        """
        teacher: FluxTeacher = super().load(*name, **options)
        teacher.distilled_guidance = float(distilled_guidance)
        return teacher

    @property
    def context_length(self) -> int:
        """T5's tokens."""
        return T5_TOKENS

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The transformer's arguments for packed text (N, L + 1, D). Raises CarvError for another width."""
        config = self.network.config
        text, pooled = self.unpacked(text_emb, config.joint_attention_dim, config.pooled_projection_dim)
        guidance = text.new_full((len(text),), self.distilled_guidance, dtype=torch.float32)
        return {
            "encoder_hidden_states": text,
            "pooled_projections": pooled,
            "txt_ids": text.new_zeros(text.shape[1], 3),
            "guidance": guidance if config.guidance_embeds else None,
        }

    def run_network(self, given: Tensor, time: Tensor, conditions: dict[str, Any]) -> Tensor:
        """The transformer's own output: (N, C, h, w), (N,) -> (N, C, h, w)."""
        n, c, h, w = given.shape
        rows, columns = h // PATCH, w // PATCH
        tokens = given.view(n, c, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)
        ids = given.new_zeros(rows, columns, 3)
        ids[..., 1] = torch.arange(rows, device=given.device)[:, None]
        ids[..., 2] = torch.arange(columns, device=given.device)
        strength = [1000 * conditions["guidance"]] if conditions["guidance"] is not None else []

        def exact(_: Any, rounded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (time.float(), *strength, rounded[-1])

        # diffusers rounds both to the network's type, which in bfloat16 is by up to 2 of 1000 timesteps
        hook = self.network.time_text_embed.register_forward_pre_hook(exact)
        try:
            prediction = self.network(
                hidden_states=tokens, timestep=time / 1000, img_ids=ids.view(-1, 3), return_dict=False, **conditions
            )[0]
        finally:
            hook.remove()
        patches: Tensor = prediction.view(n, rows, columns, c, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(n, c, h, w)

    def _encode_text(self, prompts: list[str]) -> Tensor:
        part = "text_encoder"
        length = context_length(self.encoders[part], self._tokenizer(part)) if part in self.encoders else 0
        pooled = self.states(part, prompts, length)[0].pooler_output
        text = self.states("text_encoder_2", prompts, T5_TOKENS)[0][0]
        return pack(text, pooled).to(self.dtype)
