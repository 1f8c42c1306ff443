"""Any diffusers Stable Diffusion XL model (base models, no refiner) as a frozen teacher; arXiv 2307.01952."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.teachers.families import STABLE_DIFFUSION_XL
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher
from carv_3d.teachers.tokens import text_config
from carv_3d.teachers.xl_text import XLText, unpack

TIME_IDS = 6  # original size, upper left corner of the crop, target size


class StableDiffusionXLTeacher(LatentDiffusionTeacher):
    """A `carv_3d.teachers.base.Teacher` whose text embeddings are packed, see `xl_text.pack`: (B, L + 1, max(D, P)).

    Images are said to be whole and of the model's own size. The VAE stays in float32, whatever the UNet is in,
    unless its config says `force_upcast: false`: Stable Diffusion XL's own overflows in half precision.
    """

    family = STABLE_DIFFUSION_XL
    default_model = "stabilityai/stable-diffusion-xl-base-1.0"

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text: XLText | None,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        name: str = "",
    ) -> None:
        """Parts that are already on one device, see `LatentDiffusionTeacher`; `load` is the usual way in.

        Without `text` it takes embeddings made elsewhere, and `text_embeddings` raises.
        """
        super().__init__(unet, vae, schedule, prediction_type, name, None if text is None else text.text_width)
        self.text = text
        self.text_width = int(unet.config.cross_attention_dim)
        time_width = TIME_IDS * int(unet.config.addition_time_embed_dim)
        self.pooled_width = int(unet.config.projection_class_embeddings_input_dim) - time_width
        if self.pooled_width < 1 or (text is not None and text.pooled_width != self.pooled_width):
            given = "another number" if text is None else f"a pooled embedding of {text.pooled_width}"
            raise CarvError(
                f"the UNet of {name or 'this model'} takes {self.pooled_width} numbers and {TIME_IDS} time ids, and "
                f"{given} is at hand: it is no base model of {self.family.name}."
            )

    @classmethod
    def _choose_vae_dtype(cls, config: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        upcast = config.get("force_upcast", True)  # diffusers' default
        return torch.float32 if upcast else dtype

    @classmethod
    def _from_parts(cls, folder: Path, parts: dict[str, Any], **known: Any) -> StableDiffusionXLTeacher:
        text = None if parts["text_encoder"] is None else XLText.from_parts(folder, parts)
        return cls(parts["unet"], parts["vae"], text, **known)

    @property
    def text_parts(self) -> list[tuple[Any, dict[str, Any]]]:
        """Both text encoders, with their configurations and words, and what becomes of the empty prompt."""
        if (text := self.text) is None:
            return []
        return [
            (encoder, text_config(encoder, tokenizer, empty_is_zero=text.empty_is_zero))
            for encoder, tokenizer in zip(text.encoders, text.tokenizers)
        ]

    @property
    def _tokenizers(self) -> list[tuple[Any, int]]:
        return (
            [] if self.text is None else [(tokenizer, self.text.context_length) for tokenizer in self.text.tokenizers]
        )

    def _encode_text(self, prompts: list[str]) -> Tensor:
        if self.text is None:
            raise CarvError(f"{self.name or 'this teacher'} was loaded without its text encoders.")
        return self.text(prompts, self.device).to(self.dtype)

    def conditions(self, text_emb: Tensor) -> dict[str, Any]:
        """The UNet's keyword arguments for packed text (N, L + 1, max(D, P)). Raises CarvError for another width."""
        self.check_width(
            text_emb, max(self.text_width, self.pooled_width),
            "they carry a pooled embedding, so make them by its own text_embeddings, in threestudio by "
            "carv-stable-diffusion-xl-prompt-processor with the same pretrained_model_name_or_path",
        )  # fmt: skip
        text, pooled = unpack(text_emb.to(self.dtype), self.text_width, self.pooled_width)
        size = self.image_size
        time_ids = text.new_tensor([size, size, 0, 0, size, size]).expand(len(text), TIME_IDS)
        return {
            "encoder_hidden_states": text,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids},
        }
