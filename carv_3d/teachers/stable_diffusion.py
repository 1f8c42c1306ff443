"""Any diffusers Stable Diffusion model (1.x, 2.x, carv-tiny) as a frozen teacher.

Runs on diffusers 0.19 / transformers 4.28 and on diffusers 0.42 / transformers 5. All sizes come
from the model's own configs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.families import DEFAULT_MODEL, STABLE_DIFFUSION
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher
from carv_3d.teachers.tokens import context_length, text_config, tokenize


class StableDiffusionTeacher(LatentDiffusionTeacher):
    """A `carv_3d.teachers.base.Teacher` over a UNet, a VAE and a CLIP text encoder."""

    family = STABLE_DIFFUSION
    default_model = DEFAULT_MODEL

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        name: str = "",
    ) -> None:
        """Parts that are already on one device, see `LatentDiffusionTeacher`; `load` is the usual way in.

        Without text_encoder and tokenizer (None) it takes embeddings made elsewhere, and `text_embeddings` raises.
        """
        width = None if text_encoder is None else int(text_encoder.config.hidden_size)
        super().__init__(unet, vae, schedule, prediction_type, name, width)
        self.text_encoder: Any = None if text_encoder is None else text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.context_length = 0 if text_encoder is None else context_length(text_encoder, tokenizer)

    @property
    def text_parts(self) -> list[tuple[Any, dict[str, Any]]]:
        """The text encoder, with its configuration and words."""
        encoder = self.text_encoder
        return [] if encoder is None else [(encoder, text_config(encoder, self.tokenizer))]

    @property
    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [] if self.text_encoder is None else [(self.tokenizer, self.context_length)]

    def _encode_text(self, prompts: list[str]) -> Tensor:
        """(B, L, D): the last hidden states, L the text encoder's own context length."""
        if self.text_encoder is None:
            raise CarvError(f"{self.name or 'this teacher'} was loaded without its text encoder.")
        tokens = tokenize(self.tokenizer, prompts, self.context_length)
        use_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens["attention_mask"].to(self.device) if use_mask else None
        with torch.autocast(self.device.type, enabled=False):
            output = self.text_encoder(tokens["input_ids"].to(self.device), attention_mask=mask)
        return output[0].to(self.dtype)
