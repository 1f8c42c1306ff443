"""`benchmarks/hosts.py` and its parts, where they need no other repository."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import host_gaussian_splatting as splatting
import hosts
import pytest
import torch
from host_gaussians import OURS, STOCK, Sides
from omegaconf import OmegaConf
from torch import Tensor


class Guidance:
    """Of a type with its options; a call draws one number, from its own generator if it is the extension's."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.made = (kind, options)
        self.vae, self.unet = object(), object()
        teacher = SimpleNamespace(vae=object(), unet=object())
        self._carv = SimpleNamespace(generator=torch.Generator().manual_seed(9), teacher=teacher)

    def __call__(self, image: float) -> tuple[Any, float]:
        generator = self._carv.generator if self.made[0] == OURS else None
        return self.made, image + float(torch.rand((), generator=generator))


@pytest.fixture
def sides() -> Sides:
    return Sides(Guidance, before=lambda: None)


def test_the_number_of_draws_says_which_guidance_is_called(sides: Sides) -> None:
    made = []
    for K in (0, 1, 4, 0):
        sides.num_draws = K
        made.append(sides(0.0)[0])
    assert made == [(STOCK, {}), (OURS, {"num_draws": 1}), (OURS, {"num_draws": 4}), (STOCK, {})]


def test_uniform_draws_are_of_a_guidance_of_their_own(sides: Sides) -> None:
    sides.num_draws = 1
    with sides.uniform():
        sides.num_draws = 1
        assert sides(0.0)[0] == (OURS, {"num_draws": 1, "proposal": "uniform", "stratify": "none"})
        sides.num_draws = 0
        assert sides(0.0)[0] == (STOCK, {})
    sides.num_draws = 1
    assert sides(0.0)[0] == (OURS, {"num_draws": 1})


@pytest.mark.parametrize("K", [0, 4])
def test_what_is_drawn_follows_the_seed_before_a_call(K: int) -> None:
    sides = Sides(Guidance, before=lambda: torch.manual_seed(5))
    sides.num_draws = K
    expected = 2.0 + float(torch.rand((), generator=torch.Generator().manual_seed(5)))
    assert [sides(2.0)[1] for _ in range(2)] == [pytest.approx(expected)] * 2


def test_a_guidance_is_made_when_it_is_chosen_and_once(sides: Sides) -> None:
    """Loading a model draws numbers and takes time, which are no part of a step."""
    count = []
    sides._make = lambda kind, **options: count.append(kind) or Guidance(kind, **options)  # type: ignore[func-returns-value]
    for K in (4, 4, 0, 4):
        sides.num_draws = K
    assert count == [OURS]  # the stock one was made first of all
    sides(0.0)
    assert count == [OURS]


def test_the_model_is_that_of_the_guidance_that_is_called(sides: Sides) -> None:
    stock = sides.vae, sides.unet
    assert stock == (sides._current.vae, sides._current.unet)
    sides.num_draws = 2
    assert (sides.vae, sides.unet) == (sides._current._carv.teacher.vae, sides._current._carv.teacher.unet)
    assert sides.vae is not stock[0]


def pairs(upstream: float, noise: float, cameras: int) -> tuple[Tensor, Tensor]:
    """Two gradients (cameras, 50) for each camera, of known variances; their sums over the 50 are 50 times those."""
    g = torch.Generator().manual_seed(0)
    mean = 3 + upstream * torch.randn(cameras, 50, generator=g, dtype=torch.float64)
    a, b = (mean + noise * torch.randn(cameras, 50, generator=g, dtype=torch.float64) for _ in range(2))
    return a, b


def test_the_variances_are_those_of_cameras_and_of_draws() -> None:
    a, b = pairs(upstream=0.5, noise=2.0, cameras=400)
    inner = (0.5 * (a - b).square().sum(1))[:, None]
    outer, total = hosts.variances(a @ b.T, inner, torch.ones(1, 400, dtype=torch.float64))
    assert float(outer[0]) == pytest.approx(50 * 0.25, rel=0.15)  # the noise of two draws is no part of it
    assert float(total[0, 0]) == pytest.approx(50 * (0.25 + 4), rel=0.05)


def test_a_resample_counts_its_cameras_as_often_as_they_were_drawn() -> None:
    a, b = pairs(upstream=1.0, noise=0.1, cameras=6)
    times = torch.tensor([[2.0, 0, 1, 0, 3, 0]], dtype=torch.float64)
    rows = [0, 0, 2, 4, 4, 4]
    inner = torch.arange(6, dtype=torch.float64)[:, None]
    once = torch.ones(1, 6, dtype=torch.float64)
    expected = hosts.variances(a[rows] @ b[rows].T, inner[rows], once)
    for got, want in zip(hosts.variances(a @ b.T, inner, times), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_rows_of_a_host_take_the_place_of_its_older_ones(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "OUT", tmp_path / "hosts.csv")

    def row(host: str, step: str, seconds: str) -> dict[str, str]:
        return dict.fromkeys(hosts.COLUMNS, "1") | {"host": host, "step": step, "seconds": seconds}

    hosts.write([row("b", "stock", "1"), row("b", "K = 1", "2")])
    hosts.write([row("a", "stock", "3")])
    hosts.write([row("b", "stock", "4")])
    lines = [line.split(",")[:3] for line in (tmp_path / "hosts.csv").read_text().splitlines()[1:]]
    assert lines == [["a", "stock", "3"], ["b", "stock", "4"]]


def test_the_steps_that_change_the_number_of_gaussians() -> None:
    counts = [64, 64, 128, 128, 125]
    lines = [{"logged": {"gauss_num": float(count)}} for count in counts]
    assert splatting.changes(lines) == [{"step": 2, "from": 64, "to": 128}, {"step": 4, "from": 128, "to": 125}]


def test_gaussians_are_added_and_pruned_at_the_pace_that_is_given(tmp_path: Any) -> None:
    config = OmegaConf.load(splatting.cpu_host.EXTENSION / "configs" / "carv-gaussian-splatting.yaml")
    given = OmegaConf.from_dotlist(splatting.words(tmp_path, begin=20, every=10))
    for name, value in given.system.geometry.items():
        assert name in config.system.geometry, name
        assert value == {"init_num_pts": 64}.get(str(name), 20 if "from" in str(name) else 10)
    assert len(given.system.geometry) == 5
    assert given.system.guidance.pretrained_model_name_or_path == str(tmp_path)
