"""The autoencoder's training: what it sees, what it is scored by, and the latents that are kept."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from carv_3d.tiny import autoencoder


class Checkers:
    """Images of fine checkers on their backgrounds; what was asked for is kept."""

    def __init__(self, count: int) -> None:
        self.shots = list(range(count))
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []

    def on(self, index: np.ndarray, background: np.ndarray) -> np.ndarray:
        self.asked.append((index, background))
        checkers = np.add.outer(np.arange(64), np.arange(64)) % 3 == 0
        cells = checkers[None, :, :, None] * (index % 7 + 1)[:, None, None, None]
        return (background[:, None, None, :] * (1 - 0.1 * cells)).astype(np.float32)


class Vae:
    """A posterior of a fixed mean and deviation, and a decoder of fixed images."""

    def __init__(self, mean: torch.Tensor, std: float, decoded: torch.Tensor) -> None:
        self.mean, self.std, self.decoded = mean, std, decoded
        self.encoded: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []

    def encode(self, x: torch.Tensor) -> Any:
        self.encoded.append(x)
        mean = self.mean.expand(len(x), *self.mean.shape[1:])
        std = torch.full_like(mean, self.std)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=std, var=std**2, logvar=2 * std.log()))

    def decode(self, z: torch.Tensor) -> Any:
        self.latents.append(z)
        return SimpleNamespace(sample=self.decoded)


def test_backgrounds_are_white_for_a_share_and_light_otherwise() -> None:
    colors = autoencoder.light_backgrounds(4000, torch.Generator().manual_seed(0))
    white = (colors == 1).all(1)
    assert abs(float(white.float().mean()) - 0.4) < 4 * (0.24 / 4000) ** 0.5
    assert float(colors.min()) >= 0.72 * 0.84 - 1e-6
    assert float(colors[~white].min()) < 0.62
    for share in (0.0, 1.0):
        colors = autoencoder.light_backgrounds(50, torch.Generator().manual_seed(0), white=share)
        assert float((colors == 1).all(1).float().mean()) == share


def residual(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The largest error of each image as the best blend of its images a and b."""
    d, e = (a - b).flatten(1), (x - b).flatten(1)
    share = ((d * e).sum(1) / d.square().sum(1).clamp_min(1e-12)).clamp(0, 1)
    return (e - share[:, None] * d).abs().amax(1)


def test_a_third_of_a_batch_looks_half_trained_each_way_by_its_share() -> None:
    images, n = Checkers(30), 600
    x = autoencoder.batch(images, n, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    index, background = images.asked[0]
    assert set(index) == set(range(30))
    plain = torch.from_numpy(Checkers(30).on(index, background)).permute(0, 3, 1, 2)
    fog = torch.from_numpy(background)[:, :, None, None].expand_as(plain)
    kinds = {"plain": (x - plain).abs().flatten(1).amax(1) < 1e-6}
    kinds["fog"] = (residual(x, plain, fog) < 1e-5) & ~kinds["plain"]
    half = torch.where(kinds["fog"][:, None, None, None], x, plain)
    blurred = F.interpolate(F.avg_pool2d(plain, 4), (64, 64), mode="bilinear")
    kinds["blend"] = (residual(x, half, half.flip(0)) < 1e-5) & ~kinds["plain"] & ~kinds["fog"]
    kinds["blur"] = (residual(x, plain, blurred) < 1e-5) & ~kinds["plain"] & ~kinds["fog"] & ~kinds["blend"]
    kinds["patches"] = ~(kinds["plain"] | kinds["fog"] | kinds["blend"] | kinds["blur"])
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    for kind, share in {"plain": 0.64, "fog": 0.12, "blend": 0.08, "blur": 0.08, "patches": 0.08}.items():
        measured = float(kinds[kind].float().mean())
        assert abs(measured - share) < 4 * (share * (1 - share) / n) ** 0.5, kind
    error = (x - plain)[kinds["patches"]]
    assert float(error.diff(dim=-1).abs().mean()) < 0.2  # patches are as smooth as five cells across can be
    assert len(error.flatten(1).mean(1).unique()) == len(error)


def test_the_loss_by_hand() -> None:
    x = torch.zeros(2, 3, 64, 64)
    x[..., 32:] = 1.0  # an edge of height 2 in [-1, 1], between two patches
    vae = Vae(torch.full((1, 4, 16, 16), 0.5), 2.0, torch.zeros(2, 3, 64, 64))
    value = autoencoder.loss(vae, x, torch.Generator().manual_seed(0))
    kl = 0.5 * (0.25 + 4 - 1 - np.log(4))
    assert value.item() == pytest.approx(1 + 1 + 0.5 * 2 / 63 + 4 + 1e-5 * kl, rel=1e-6)
    assert torch.equal(vae.encoded[0], 2 * x - 1)
    assert float(vae.latents[0].mean()) == pytest.approx(0.5, abs=4 * 2 / 2048**0.5)
    assert float(vae.latents[0].std()) == pytest.approx(2.0, rel=0.1)
    same = Vae(torch.zeros(1, 4, 16, 16), 1.0, 2 * x - 1)
    assert autoencoder.loss(same, x, torch.Generator().manual_seed(0)).item() == pytest.approx(0, abs=1e-7)


def test_the_ratio_of_signal_to_noise_by_hand() -> None:
    x = torch.full((2, 3, 8, 8), 0.5)
    vae = Vae(torch.zeros(1, 4, 2, 2), 1.0, torch.full((2, 3, 8, 8), 0.2))  # decoded: 0.6
    assert autoencoder.psnr(vae, x) == pytest.approx(20.0, rel=1e-5)
    assert torch.equal(vae.encoded[0], torch.zeros_like(x))
    assert torch.equal(vae.latents[0], torch.zeros(2, 4, 2, 2))
    clipped = Vae(torch.zeros(1, 4, 2, 2), 1.0, torch.full((2, 3, 8, 8), 3.0))  # decoded: 1
    assert autoencoder.psnr(clipped, x) == pytest.approx(-10 * np.log10(0.25), rel=1e-5)


@pytest.mark.parametrize("background", ["white", "light"])
def test_every_image_is_encoded_once_on_its_background(background: str) -> None:
    images, said = Checkers(260), []
    vae = Vae(torch.full((1, 4, 16, 16), 0.25), 0.5, torch.zeros(1))
    mean, std = autoencoder.encode_all(vae, images, background, 3, said.append)  # type: ignore[arg-type]
    assert (mean.shape, std.shape, mean.dtype, std.dtype) == (*[(260, 4, 16, 16)] * 2, *[torch.float16] * 2)
    assert set(mean.flatten().tolist()) == {0.25}
    assert set(std.flatten().tolist()) == {0.5}
    assert np.concatenate([index for index, _ in images.asked]).tolist() == list(range(260))
    colors = np.concatenate([color for _, color in images.asked])
    assert (colors == 1).all() == (background == "white")
    if background == "light":
        assert not (colors == 1).all(1).any()
        again = Checkers(260)
        autoencoder.encode_all(vae, again, background, 3, said.append)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate([color for _, color in again.asked]), colors)
    assert said[0] == f"encoded 260 images on {background}"
    assert float(vae.encoded[0].max()) <= 1
    assert float(vae.encoded[0].min()) < 0.9  # in [-1, 1], not [0, 1]


@pytest.mark.parametrize("size", [64, 128])
def test_images_of_both_sizes_have_latents_of_sixteen_rows(size: int) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**autoencoder.config(size))
    x = torch.rand(1, 3, size, size)
    z = vae.encode(x).latent_dist.mean
    assert z.shape == (1, 4, 16, 16)
    assert vae.decode(z).sample.shape == x.shape


def test_a_new_autoencoder_is_drawn_to_the_latents_of_an_older_one_for_smaller_images() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    vae = Vae(torch.full((1, 4, 2, 2), 0.5), 0.1, 2 * x - 1)
    older = Vae(torch.full((1, 4, 2, 2), 0.2), 0.1, x)
    older.config = SimpleNamespace(sample_size=4, scaling_factor=2.0)  # type: ignore[attr-defined]
    alone, near = (
        autoencoder.loss(vae, x, torch.Generator().manual_seed(1), *more)  # the same noise
        for more in ((), (older,))
    )
    assert float(near - alone) == pytest.approx(autoencoder.LATENT_WEIGHT * 0.3**2 * 2.0**2, rel=1e-4)
    torch.testing.assert_close(older.encoded[0], 2 * F.avg_pool2d(x, 2) - 1)
