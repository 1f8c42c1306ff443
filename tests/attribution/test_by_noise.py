"""Draws shared out by noise: no bias, the variance that theory gives, and the stores of `carv attribute`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import noise_images
import numpy as np
import pytest
import torch
from commands import refusal
from scaling_double import Scaling, TensorItems
from torch import nn

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions
from carv_3d.attribution.by_noise import NoiseMaker, deviations
from carv_3d.cli import main as cli
from carv_3d.core.allocation import neyman

PILOT = 4


class Untimed(nn.Module):
    """A module of the noisy item alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.module(z_t)


def options(K: int, parameters: str = "all", **more: Any) -> FeatureOptions:
    return FeatureOptions(draws=GroupedDrawOptions(num_draws=K, groups=2, **more), dim=None, parameters=parameters)


def makers(model: GradientModel, items: TensorItems, K: int, **more: Any) -> NoiseMaker:
    first = FeatureMaker(model, options(PILOT, **more))
    return NoiseMaker(options(K, **more), first, first.item_rows(items, list(range(len(items)))).clone())


def rows(maker: FeatureMaker, items: TensorItems) -> torch.Tensor:
    """(N, groups, dim), as a store would have them."""
    out: dict[int, torch.Tensor] = {}
    for batch in maker.batches(list(range(len(items)))):
        out |= dict(zip(batch, maker.item_rows(items, batch)))
    return torch.stack([out[i] for i in range(len(items))]).double()


def scaled(count: int, shape: tuple[int, ...], name: str = "item") -> TensorItems:
    """Items of which some are far larger, and noisier, than others."""
    z = torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))
    return TensorItems(z * torch.tensor([0.2, 1.0, 4.0])[torch.arange(count) % 3].view(-1, 1, 1, 1), name)


def single_variances(model: GradientModel, items: TensorItems, pair: bool = False) -> torch.Tensor:
    """(N,) tr Cov of one draw of each item, or of a pair's mean."""
    moments = [model.module.moments(z, model.schedule, pair) for z in items.z]
    return torch.stack([(noise.mean(0) + mean.var(0, unbiased=False)).sum() for mean, noise in moments])


def test_the_mean_is_exact_where_noise_and_gradient_go_together(schedule, monkeypatch) -> None:
    """One number an item, quadratic in its noise: a pilot far from the mean is one that asks for many draws."""
    monkeypatch.setattr("carv_3d.attribution.features.BATCH", 64)
    exact_model, module = Scaling((1, 1, 1)), nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    module[0].weight.data.copy_(exact_model.a)
    model = GradientModel.from_module(Untimed(module), schedule)
    items = TensorItems(torch.tensor([0.3, 3.0]).repeat(1000).view(-1, 1, 1, 1))
    maker = makers(model, items, 12, antithetic=False, stratify="none", parameters="layers")
    counts = torch.tensor(maker.rest).double()
    assert float(counts.std()) > 3
    halves = rows(maker, items)[..., 0]
    exact = torch.stack([exact_model.expected_gradient(z, schedule) for z in items.z[:2]])[:, 0].repeat(1000)
    errors = halves.mean(1) - exact
    for kind in range(2):
        error = errors[kind::2]
        assert abs(float(error.mean())) < 4 * float(error.std()) / len(error) ** 0.5
    apart = (halves[:, 0] - halves[:, 1]).square().mean() / 4
    assert float(apart) == pytest.approx(float(errors.square().mean()), rel=0.15)  # the groups are uncorrelated


def test_the_variance_falls_as_theory_says(schedule) -> None:
    model = GradientModel.from_module(Scaling((1, 12, 12)), schedule)
    K, N, copies, plain = 16, 60, 15, {"antithetic": False, "stratify": "none"}
    z = scaled(N, (1, 12, 12)).z
    exact = torch.stack([model.module.expected_gradient(each, schedule) for each in z])
    s2, w = single_variances(model, scaled(N, (1, 12, 12))), PILOT / K
    squares, theory = {"noise": 0.0, "equal": 0.0}, 0.0
    for copy in range(copies):
        items = scaled(N, (1, 12, 12), f"copy {copy}")
        maker = makers(model, items, K, **plain)
        assert sum(maker.rest) == N * (K - PILOT)
        theory += float((w**2 * s2 / PILOT + (1 - w) ** 2 * s2 / torch.tensor(maker.rest)).sum()) / copies
        squares["noise"] += float((rows(maker, items).mean(1) - exact).square().sum()) / copies
        equal = FeatureMaker(model, options(K, **plain))
        squares["equal"] += float((rows(equal, items).mean(1) - exact).square().sum()) / copies
    counts = torch.tensor(neyman(s2.sqrt().tolist(), N * (K - PILOT), 2))
    known = float((w**2 * s2 / PILOT + (1 - w) ** 2 * s2 / counts).sum())
    assert squares["equal"] == pytest.approx(float(s2.sum()) / K, rel=0.08)
    assert squares["noise"] == pytest.approx(theory, rel=0.08)
    assert known < theory < 1.15 * known  # what an estimate of the noise costs
    assert theory < 0.9 * float(s2.sum()) / K


def test_deviations_are_those_of_items_in_as_far_as_they_show() -> None:
    g, N = torch.Generator().manual_seed(0), 4000
    normal = torch.randn(N, 2, 3, generator=g, dtype=torch.float64)
    alike = deviations(normal)
    assert float(alike.std() / alike.mean()) < 0.05  # where raw estimates differ by half
    assert float(alike.square().mean()) == pytest.approx(3, rel=0.05)
    true = torch.tensor([1.0, 4.0], dtype=torch.float64).repeat(N // 2)
    apart = deviations(normal * true[:, None, None]).square()
    by_kind = apart.view(-1, 2).mean(0)
    v = (normal * true[:, None, None]).diff(dim=1).square().sum((1, 2)) / 2
    expected = float((3 * true**2).var() / v.var())  # the best linear prediction's slope
    assert float(by_kind[1] - by_kind[0]) == pytest.approx(expected * 45, rel=0.1)
    assert torch.equal(deviations(normal[:1]), normal[:1].diff(dim=1).square().sum((1, 2)).div(2).sqrt())
    assert float(deviations(torch.ones(5, 2, 3)).sum()) == 0


def test_an_items_row_is_its_pilot_and_its_own_draws(model, items) -> None:
    maker = makers(model, items, 16)
    i = max(range(6), key=lambda i: maker.rest[i])
    own = FeatureMaker(model, options(maker.rest[i]), "rest").feature(items.key(i), items.latents(i))
    first = FeatureMaker(model, options(PILOT)).feature(items.key(i), items.latents(i))
    row = rows(maker, items)[i].float()
    assert torch.allclose(row, 0.25 * first + 0.75 * own, atol=1e-6)
    assert {maker.rest[j] for batch in maker.batches([0, 2, 4]) for j in batch} == {maker.rest[j] for j in (0, 2, 4)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six training images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        noise_images.save(tmp_path / "in" / f"{i}.png", i)
    return tmp_path


def test_the_command_makes_the_pilot_then_the_rest(place, sd_folder, capsys) -> None:
    by_noise = ["allocation=noise", "num_draws=16"]
    words = noise_images.words("in/1.png", "in", sd_folder, *by_noise)
    assert "with allocation=noise it must be at least 12" in refusal(capsys, *words, "num_draws=8")
    assert cli.main([*words, "--out", "a"]) == 0
    assert "4 draws of each image first" in capsys.readouterr().out
    assert json.loads(Path("a/settings.json").read_text())["allocation"] == "noise"
    stores = {p.parent.name: np.load(p) for p in place.glob("cache/attribution/*/*/rows.npy")}
    (own,) = [rows for name, rows in stores.items() if "by-noise" in name]
    (first,) = [rows for name, rows in stores.items() if name.startswith("loss-") and "by-noise" not in name]
    assert own.shape == first.shape == (6, 2, 64)
    assert np.abs(own - first).min(axis=(1, 2)).max() > 0
    with open("a/scores.csv", newline="") as handle:
        whole = sorted(row["score"][:8] for row in csv.DictReader(handle))
    # in two shares, and the pilot's come first
    shares = [*words, "--store", "s", "--shard"]
    assert cli.main([*shares, "0/2"]) == 0
    assert "Then the same command makes the other draws" in capsys.readouterr().out
    assert cli.main([*shares, "1/2"]) == 0
    assert "3 training images are left" in capsys.readouterr().out
    assert cli.main([*shares, "0/2", "--out", "b"]) == 0
    with open("b/scores.csv", newline="") as handle:
        assert sorted(row["score"][:8] for row in csv.DictReader(handle)) == whole
    assert {p.parent.name for p in Path("s").glob("*/rows.npy")} == {"latents", "loss-pilot", "loss-by-noise"}
