"""The text encoder and the UNet of carv-tiny, trained together on cached latents."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from ...core.schedule import NoiseSchedule
from .dataset import Pictures
from .tokens import LENGTH
from .vocabulary import caption

UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 32,
    "block_out_channels": (64, 128, 192), "cross_attention_dim": 128,
    "attention_head_dim": 4,  # diffusers reads this as the number of heads
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    # the whole caption reaches every layer beside the timestep: cross-attention alone hardly learnt the views
    "addition_embed_type": "text", "addition_embed_type_num_heads": 4,
}  # fmt: skip
NO_PROMPT = 0.1  # share of captions dropped, for classifier-free guidance
SNR_CAP = 5.0  # as in min-SNR weighting (arXiv 2303.09556)
WEIGHT_CAP = 6.0


class Denoiser(nn.Module):
    """``eps_hat(z_t, t, token ids)``; both parts are ordinary diffusers / transformers models."""

    def __init__(self, vocabulary: int, start: int, end: int):
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=128, bos_token_id=start,
                eos_token_id=end, pad_token_id=end,
            )
        )  # fmt: skip
        self.unet = UNet2DConditionModel(**UNET)
        self.unet.set_attn_processor(AttnProcessor())  # quicker to train on a CPU than SDPA
        nn.init.zeros_(self.unet.add_embedding.norm2.weight)  # silent at first, so that it can join a trained UNet

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(z_t, t, self.text(ids).last_hidden_state).sample


class Latents:
    """Cached posterior of each picture on each background, and its captions, drawn anew every time."""

    def __init__(self, posteriors: list[tuple[Tensor, Tensor]], scaling: float, pictures: Pictures, tokenizer: Any):
        self.posteriors, self.scaling, self.shots, self.tokenizer = (
            posteriors,
            scaling,
            pictures.shots,
            tokenizer,
        )

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scaled latents ``(count, 4, 16, 16)`` and token ids ``(count, LENGTH)``."""
        index = torch.randint(len(self.shots), (count,), generator=generator)
        which = int(torch.randint(len(self.posteriors), (1,), generator=generator))
        mean, std = self.posteriors[which][0][index].float(), self.posteriors[which][1][index].float()
        z = (mean + std * torch.randn(mean.shape, generator=generator)) * self.scaling
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        texts = []
        for i in index.tolist():
            s = self.shots[i]
            text = caption(rng, s.obj, s.colour, s.finish, s.elevation, s.azimuth)
            texts.append("" if rng.random() < NO_PROMPT else text)
        ids = self.tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        return z, ids.input_ids


def weight_of(snr: Tensor) -> Tensor:
    """Of the squared error of the noise: sqrt(min(SNR, 5)) / SNR, at most 6.

    Min-SNR weighting is min(SNR, 5) / SNR; the root leaves more to the high noise levels, where the text decides
    what stands where, the picture's side above all.
    """
    return (snr.clamp_max(SNR_CAP).sqrt() / snr).clamp_max(WEIGHT_CAP)


def loss(model: Denoiser, schedule: NoiseSchedule, z: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Error of the noise, weighted by :func:`weight_of`; timesteps stratified over the batch."""
    count, steps = len(z), schedule.num_train_timesteps
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    t = (u * steps).long().clamp_max(steps - 1)
    eps = torch.randn(z.shape, generator=generator)
    error = (model(schedule.add_noise(z, eps, t), t, ids) - eps).square().mean(dim=(1, 2, 3))
    return (error * weight_of((schedule.alpha(t) / schedule.sigma(t)).square())).mean()
