"""The denoiser's training: latents, captions, timesteps, weights, and the error that it learns from."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.tiny import denoiser
from carv_3d.tiny.render import Shot
from carv_3d.tiny.tokens import LENGTH
from carv_3d.tiny.vocabulary import parse


class Reader:
    """A tokenizer that keeps what it is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.asked: dict[str, Any] = {}

    def __call__(self, texts: list[str], **asked: Any) -> SimpleNamespace:
        self.texts, self.asked = texts, asked
        return SimpleNamespace(input_ids=torch.arange(len(texts) * LENGTH).view(-1, LENGTH))


SHOTS = [Shot("mug", "red", "striped", azimuth=90.0), Shot("car", "blue", azimuth=180.0, elevation=-5.0)]


def latents(mean: list[float], std: float, scaling: float = 0.5, posteriors: int = 1) -> denoiser.Latents:
    """Of two images, whose posteriors have constant means; a further posterior's are 10 higher each."""
    means = torch.tensor(mean).view(-1, 1, 1, 1).expand(-1, 4, 16, 16)
    pairs = [((means + 10 * i).half(), torch.full_like(means, std).half()) for i in range(posteriors)]
    return denoiser.Latents(pairs, scaling, SimpleNamespace(shots=SHOTS), Reader())  # type: ignore[arg-type]


def test_latents_are_drawn_from_their_posterior_and_scaled() -> None:
    z, ids = latents([0.0, 0.0], 1.0).batch(200, torch.Generator().manual_seed(0))
    assert (z.shape, z.dtype, ids.shape) == ((200, 4, 16, 16), torch.float32, (200, LENGTH))
    assert float(z.std()) == pytest.approx(0.5, rel=0.01)
    assert abs(float(z.mean())) < 4 * 0.5 / z.numel() ** 0.5
    z, _ = latents([2.0, 6.0], 0.0).batch(200, torch.Generator().manual_seed(0))
    assert set(z.flatten().tolist()) == {1.0, 3.0}


def test_each_batch_is_of_one_of_the_backgrounds() -> None:
    data, generator = latents([2.0, 6.0], 0.0, posteriors=2), torch.Generator().manual_seed(0)
    batches = [frozenset(data.batch(64, generator)[0].flatten().tolist()) for _ in range(12)]
    assert set(batches) == {frozenset({1.0, 3.0}), frozenset({6.0, 8.0})}


def test_captions_are_of_their_images_and_a_tenth_is_dropped() -> None:
    data = latents([0.0, 1.0], 0.0, scaling=1.0)
    z, _ = data.batch(3000, torch.Generator().manual_seed(0))
    reader: Any = data.tokenizer
    assert reader.asked == {
        "padding": "max_length",
        "max_length": LENGTH,
        "truncation": True,
        "return_tensors": "pt",
    }
    dropped = sum(text == "" for text in reader.texts) / 3000
    assert abs(dropped - 0.1) < 4 * (0.09 / 3000) ** 0.5
    for index, text in list(zip(z[:, 0, 0, 0].long().tolist(), reader.texts))[:300]:
        if text:
            shot = SHOTS[index]
            assert parse(text) == (shot.obj, shot.color, shot.material)
            view = ("left", "side") if index == 0 else ("back",)
            assert "view" not in text or any(f"{side} view" in text for side in view)


def test_the_loss_is_the_error_of_v() -> None:
    schedule = NoiseSchedule.scaled_linear()
    z, ids = torch.randn(4, 4, 16, 16), torch.zeros(4, LENGTH, dtype=torch.long)
    inputs = {}

    def zeros(z_t, t, ids):
        inputs["t"], inputs["z_t"] = t, z_t
        return torch.zeros_like(z_t)

    value = denoiser.loss(zeros, schedule, z, ids, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    a2 = (schedule.alpha(inputs["t"]) ** 2).view(-1, 1, 1, 1)
    eps = (inputs["z_t"] - a2.sqrt() * z) / (1 - a2).sqrt()
    v = a2.sqrt() * eps - (1 - a2).sqrt() * z
    weight = (1 / (1 - a2)).clamp_max(4.0) * (1 - a2)  # SNR + 1 = 1 / sigma^2
    torch.testing.assert_close(value, (v.square() * weight).mean(), atol=1e-4, rtol=1e-4)


def test_seven_in_ten_timesteps_come_from_the_upper_four_tenths() -> None:
    t = denoiser.timesteps(1000, 1000, torch.Generator().manual_seed(0))
    assert (t[1:] >= t[:-1]).all()
    assert int(t[-1]) == 999
    assert int((t < 600).sum()) == 300
    assert abs(int((t < 300).sum()) - 150) <= 1
    assert abs(int((t < 800).sum()) - 650) <= 1


def test_the_weight_is_known_at_known_noise_levels() -> None:
    snr = torch.tensor([79.0, 3.0, 1.0, 1e-3])
    torch.testing.assert_close(denoiser.error_weight(snr), torch.tensor([4 / 80, 1.0, 1.0, 1.0]))


def test_the_pooled_caption_is_silent_until_it_is_trained() -> None:
    torch.manual_seed(0)
    model = denoiser.Denoiser(30, 0, 1).eval()
    ids = torch.arange(2 * LENGTH).view(2, LENGTH) % 30
    pooled = model.unet.add_embedding(model.text(ids).last_hidden_state)
    assert torch.equal(pooled, torch.zeros_like(pooled))
