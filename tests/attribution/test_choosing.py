"""`num_draws=auto`: K from what a few images show, and kept for the next query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import noise_images
import numpy as np
import pytest
import torch
from commands import refusal

from carv_3d.attribution import FeatureMaker, FeatureOptions, GroupedDrawOptions, choosing
from carv_3d.attribution.choosing import Choice, ImageVariances, best_draws, contributions
from carv_3d.cli import main as cli

DRAWS = GroupedDrawOptions(groups=2)


class Known:
    """Variances with s_out^2 = 1 and V_in(K) = 16 / K."""

    outer = 1.0

    def inner(self, K: int) -> float:
        return 16 / K


@pytest.mark.parametrize(("image_seconds", "K"), [(0.1, 4), (4.0, 8), (16.0, 16), (1e4, 32)])
def test_k_is_the_best_of_the_grid(image_seconds: float, K: int) -> None:
    """sqrt(c_up / c_den s_in^2 / s_out^2) = 4 sqrt(image_seconds) with draws of a second."""
    choice = best_draws(Known(), DRAWS, image_seconds, 1.0, 4)  # type: ignore[arg-type]
    assert choice.num_draws == K
    assert choice.share == pytest.approx(1 / (1 + 16 / K))
    assert best_draws(Known(), DRAWS, 0.1, 1.0, 12).num_draws == 16  # type: ignore[arg-type]
    single = GroupedDrawOptions(groups=2, antithetic=False, num_draws=2)
    assert best_draws(Known(), single, 0.1, 1.0, 2).num_draws == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("stratify", "antithetic"), [("render", True), ("render", False), ("none", True)])
def test_the_two_variances_are_those_of_the_images(model, items, stratify, antithetic) -> None:
    K = 8 if antithetic else 4  # two strata in each group
    draws = GroupedDrawOptions(groups=2, num_draws=K, stratify=stratify, antithetic=antithetic)
    maker = FeatureMaker(model, FeatureOptions(draws=draws, dim=None))
    inner, outer, z = [], [], 2 * items.z
    for copy in range(25):
        keys = [f"{copy} {items.key(i)}" for i in range(6)]
        parts = [contributions(maker, key, z[i], None, 8).mean(2) for i, key in enumerate(keys)]
        measured = ImageVariances(parts, draws)
        inner.append(measured.inner(K))
        outer.append(measured.outer)
    exact = torch.stack([model.module.expected_gradient(each, model.schedule) for each in z])
    assert min(outer) > 0
    assert abs(np.mean(outer) - float(exact.var(0).sum())) < 4 * np.std(outer) / 5
    k = 2 if stratify == "render" else 1
    moments = [model.module.moments(each, model.schedule, antithetic) for each in z]  # given t, of a draw or a pair
    spreads = [mean.unflatten(0, (k, -1)).var(1, unbiased=False).mean(0) + noise.mean(0) for mean, noise in moments]
    theory = float(torch.stack(spreads).sum() / 6) / (K // draws.design.group_size)
    assert abs(np.mean(inner) - theory) < 4 * np.std(inner) / 5
    assert measured.inner(64) == pytest.approx(measured.inner(32) / 2)  # beyond the finest strata


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    for i in range(4):
        noise_images.save(tmp_path / "in" / f"{i}.png", i)
    return tmp_path


def test_the_command_measures_once_and_says_what(place, sd_folder, monkeypatch, capsys) -> None:
    measured: list[int] = []
    whole = choosing.choose_draws

    def counted(maker: Any, images: Any, teacher: Any, least: int) -> Choice:
        measured.append(len(images))
        return Choice(whole(maker, images, teacher, least).num_draws, 0.25, 0.002, 0.011)

    monkeypatch.setattr("carv_3d.attribution.command.choose_draws", counted)
    words = [w for w in noise_images.words("../in/1.png", "../in", sd_folder) if not w.startswith("num_draws")]
    words.append("num_draws=auto")
    assert cli.main([*words, "--out", "a"]) == 0
    out = capsys.readouterr().out
    assert "With them 25% of the variance is between images; an image takes 2 ms and a draw 11 ms." in out
    K = json.loads(Path("a/settings.json").read_text())["num_draws"]
    assert K in (4, 8, 16, 32)
    assert f"num_draws=auto: {K} draws of an image." in out
    assert cli.main([*words, "--out", "b"]) == 0
    assert measured == [4]
    assert Path("a/scores.csv").read_text() == Path("b/scores.csv").read_text()
    (kept,) = place.glob("cache/attribution/*/draws-*.json")
    kept.write_text('{"num_draws": 8}')
    assert "holds no choice of draws; delete" in refusal(capsys, *words, "--out", "c")


def test_a_single_image_is_no_choice(place, sd_folder, capsys) -> None:
    words = noise_images.words("../in/1.png", "../in", sd_folder, "num_draws=auto", "--items", "1")
    assert "give num_draws a number" in refusal(capsys, *words)
