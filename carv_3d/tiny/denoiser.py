"""The text encoder and the UNet of carv-tiny, trained together on cached latents."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.tiny.dataset import Images
from carv_3d.tiny.tokens import LENGTH
from carv_3d.tiny.vocabulary import caption

UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 32,
    "block_out_channels": (64, 128, 192), "cross_attention_dim": 128,
    "attention_head_dim": 4,  # diffusers reads this as the number of heads
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    # the whole caption reaches every layer next to the timestep: cross-attention alone hardly learned the views
    "addition_embed_type": "text", "addition_embed_type_num_heads": 4,
}  # fmt: skip
LAYERS = 3  # of the text encoder
NO_PROMPT = 0.1  # share of captions dropped, for classifier-free guidance
CAP = 4.0


class Denoiser(nn.Module):
    """``v(z_t, t, token ids)``; both parts are ordinary diffusers / transformers models.

    With ``autocast`` the UNet's products are bfloat16's; its weights, its result and the text encoder stay float32.
    """

    def __init__(self, vocabulary: int, start: int, end: int, autocast: bool = False):
        super().__init__()
        self.autocast = autocast
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=128, intermediate_size=512, num_hidden_layers=LAYERS,
                num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=128, bos_token_id=start,
                eos_token_id=end, pad_token_id=end,
            )
        )  # fmt: skip
        self.unet = UNet2DConditionModel(**UNET)
        self.unet.set_attn_processor(AttnProcessor())  # faster to train on a CPU than SDPA
        nn.init.zeros_(self.unet.add_embedding.norm2.weight)  # silent at first, so that it can join a trained UNet

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """z_t (N, 4, 16, 16), t (N,), token ids (N, LENGTH) -> v (N, 4, 16, 16), float32."""
        hidden = self.text(ids).last_hidden_state  # small: the casts would cost more than they save
        with torch.autocast(z_t.device.type, torch.bfloat16, enabled=self.autocast):
            return self.unet(z_t, t, hidden).sample.float()


class Latents:
    """Cached posterior of each image on each background, and its captions, drawn anew every time."""

    def __init__(self, posteriors: list[tuple[Tensor, Tensor]], scaling: float, images: Images, tokenizer: Any):
        self.posteriors, self.scaling = posteriors, scaling
        self.shots, self.tokenizer = images.shots, tokenizer

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
            text = caption(rng, s.obj, s.color, s.material, s.elevation, s.azimuth)
            texts.append("" if rng.random() < NO_PROMPT else text)
        ids = self.tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        return z, ids.input_ids


def error_weight(snr: Tensor) -> Tensor:
    """The weight of the squared error of v: min(SNR + 1, 4) / (SNR + 1).

    An error of v is SNR + 1 times one of the image. So the image's error weighs alike at all high noise levels, where
    the text decides the layout, and at most four times as much at the low ones.
    """
    return (snr + 1).clamp_max(CAP) / (snr + 1)


def timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Stratified timesteps ``(count,)``, seven in ten from the upper four tenths, where the layout is learned."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    share = torch.where(u < 0.3, 2 * u, 0.6 + (u - 0.3) * 4 / 7)
    return (share * steps).long().clamp_max(steps - 1)


def loss(model: Denoiser, schedule: NoiseSchedule, z: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Error of ``v = alpha_t eps - sigma_t z``, weighted by `error_weight`, at `timesteps`; a scalar.

    The noise is no target: near t = 1000 it is nearly the input, and copying that used all of the UNet's accuracy.
    """
    count, steps = len(z), schedule.num_train_timesteps
    t = timesteps(count, steps, generator)
    eps = torch.randn(z.shape, generator=generator)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    v = schedule.target("v_prediction", z, eps, t)
    error = (model(schedule.add_noise(z, eps, t), t, ids) - v).square().mean(dim=(1, 2, 3))
    return (error * error_weight((alpha / sigma).square())).mean()
