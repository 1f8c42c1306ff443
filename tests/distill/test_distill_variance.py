"""The variance of the generator's gradient against theory, its intervals, its table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SCHEDULE, SHAPE, LinearUNet
from torch import Tensor

from carv_3d.core.designs import Design
from carv_3d.distill.loop import Distillation
from carv_3d.distill.network import FakeScore, OneStepGenerator
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.prompts import ListedPrompts
from carv_3d.distill.variance import (
    PairBenchmark,
    Setting,
    VarianceRow,
    read_setting,
    table_text,
    variance_table,
    write_csv,
)
from carv_3d.distill.variance_request import DEFAULT
from carv_3d.errors import CarvError
from carv_3d.stats.bootstrap import Interval
from carv_3d.teachers.gaussian import GaussianTeacher

MU, S_REAL, S_FAKE = 0.7, 0.4, 0.7


class Shift(torch.nn.Module):
    """v such that z = alpha eps + theta at T - 1: the generator's gradient w.r.t. theta is the mean latent gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(4))

    def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
        sigma = SCHEDULE.sigma(t).view(-1, 1)
        return ((-self.theta.expand(len(z_t), 4) / sigma).view_as(z_t),)


class KnownFake(FakeScore):
    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        none = torch.zeros(len(z_t), 1, 1)
        return GaussianTeacher(torch.zeros(1, *SHAPE), std=S_FAKE).eps_hat(z_t, t, none)


@pytest.fixture(scope="module")
def distillation() -> Distillation:
    return Distillation(
        GaussianTeacher(torch.full((1, *SHAPE), MU), std=S_REAL),
        DistillOptions(objective="kl", guidance_scale=1.0, max_batch=10_000),
        ListedPrompts(["0"]),
        generator=OneStepGenerator(Shift(), SCHEDULE, "v_prediction"),
        fake=KnownFake(LinearUNet(), SCHEDULE),
    )


def theory() -> tuple[float, float, float]:
    """(s_out^2, s_in^2, s_in^2 of a pair) of the gradient w.r.t. theta, of one sample and one draw.

    f = alpha (s_fake - s_real) = a z + b + c eps for each t, with z = alpha_T eps_T; the loss is a mean over four
    elements, so its gradient is f / 4.
    """
    t = torch.arange(20, 981)
    alpha, sigma = SCHEDULE.alpha(t).double(), SCHEDULE.sigma(t).double()
    real, fake = ((alpha * s) ** 2 + sigma**2 for s in (S_REAL, S_FAKE))
    slope = alpha * (1 / real - 1 / fake)
    a, b, c = slope * alpha, -(alpha**2) * MU / real, slope * sigma
    z2 = float(SCHEDULE.alphas_cumprod[999])
    outer = 4 * float(a.mean()) ** 2 * z2
    whole = 4 * float((a**2).mean() * z2 + (c**2).mean() + (b**2).mean() - b.mean() ** 2)
    noise = 4 * float((c**2).mean())
    return outer / 16, (whole - outer) / 16, (whole - outer - noise) / 16


def test_the_variance_falls_as_theory_says(distillation: Distillation) -> None:
    s_out2, s_in2, _ = theory()
    settings = [Setting(B, K) for B, K in ((1, 1), (2, 4), (8, 1), (8, 16))]
    benchmark = PairBenchmark(distillation, settings)
    for _ in range(80):
        benchmark.round()
    for setting, samples in zip(settings, benchmark.samples):
        for values, expected in (
            (samples.total, s_out2 / setting.B + s_in2 / (setting.B * setting.K)),
            (samples.inner, s_in2 / (setting.B * setting.K)),
        ):
            x = torch.tensor(values, dtype=torch.float64)
            assert abs(float(x.mean()) - expected) < 4 * float(x.std()) / len(x) ** 0.5
            assert float(x.std()) / len(x) ** 0.5 < 0.2 * expected
    rows = benchmark.rows()
    assert rows[0].reduction.value == 1.0
    assert rows[3].variance.low < s_out2 / 8 + s_in2 / 128 < rows[3].variance.high
    assert rows[3].upstream.low < s_out2 / 8 < rows[3].upstream.high
    assert rows[3].pairs == 80


def test_strata_and_pairs_lower_it_and_nothing_of_the_run_moves(distillation: Distillation) -> None:
    before = {name: g.get_state() for name, g in distillation.generators.items()}
    settings = [read_setting(s) for s in ("4x8", "4x8+strat", "4x8+antithetic")]
    rows = variance_table(distillation, settings, repeats=60, seed=3)
    values = [row.variance.value for row in rows]
    assert values[1] < 0.6 * values[0]
    assert rows[1].reduction.low > 1
    s_out2, s_in2, s_pair2 = theory()  # four pairs, in which the noise cancels: f is linear in eps here
    assert rows[0].variance.low < s_out2 / 4 + s_in2 / 32 < rows[0].variance.high
    assert rows[2].variance.low < s_out2 / 4 + s_pair2 / 16 < rows[2].variance.high
    assert all(torch.equal(g.get_state(), before[name]) for name, g in distillation.generators.items())
    assert all(p.grad is None for p in distillation.generator.parameters())
    assert distillation.step == 0
    again = variance_table(distillation, settings[:2], repeats=60, seed=3)
    assert again[1].variance.value == values[1]  # a setting's figures are its own, whatever else is measured


def test_a_settings_figures_are_its_own(distillation: Distillation) -> None:
    settings = [Setting(1, 1), Setting(2, 2)]
    forward, backward = (variance_table(distillation, order, repeats=2, seed=1) for order in (settings, settings[::-1]))
    assert [row.variance.value for row in forward] == [row.variance.value for row in backward[::-1]]
    assert variance_table(distillation, settings, repeats=2, seed=2)[0].variance.value != forward[0].variance.value


def test_it_stops_when_the_time_is_up_or_on_demand(distillation: Distillation) -> None:
    shown: list[int] = []
    assert variance_table(distillation, [Setting(1, 1)], 50, seconds=0.0)[0].pairs == 2
    rows = variance_table(distillation, [Setting(1, 1)], 50, show=shown.append, stopped=lambda: len(shown) == 3)
    assert (shown, rows[0].pairs) == ([1, 2, 3], 3)
    assert variance_table(distillation, [Setting(1, 1)], stopped=lambda: True) == []
    with pytest.raises(CarvError, match=r"draws = 100000 x 100000.*take a smaller setting than 100000x100000"):
        PairBenchmark(distillation, [Setting(1, 1), Setting(100_000, 100_000)])
    benchmark = PairBenchmark(distillation, [Setting(1, 1)])
    assert not benchmark.round(lambda: True)
    with pytest.raises(CarvError, match="needs two pairs"):
        benchmark.rows()


def test_settings_are_read_and_named() -> None:
    assert [read_setting(s).name for s in DEFAULT] == list(DEFAULT)
    assert read_setting("2x4+antithetic") == Setting(2, 4, Design(stratify="none", antithetic=True))
    assert read_setting("2x4+global").name == "2x4+global"
    for text, message in (
        ("8", "cannot be read"),
        ("8x4+stratt", "there is no method 'stratt'"),
        ("8x4+is", "there are: strat, global, antithetic"),
        ("0x4", "no samples or no draws"),
        ("8x3+antithetic", "come in pairs"),
    ):
        with pytest.raises(CarvError, match=message):
            read_setting(text)
    with pytest.raises(CarvError, match="named twice"):
        PairBenchmark(None, [Setting(1, 1), Setting(1, 1)])  # type: ignore[arg-type]


def test_the_table_has_the_papers_figures_next_to_ours(tmp_path: Path) -> None:
    row = VarianceRow(
        read_setting("8x16+strat"), Interval(2.0, 1.5, 2.5), Interval(1.0, 0.5, 1.5), Interval(31.0, 30.0, 33.0), 0.5, 9
    )
    write_csv(tmp_path / "variance.csv", [row])
    written = next(csv.DictReader((tmp_path / "variance.csv").read_text().splitlines()))
    assert (written["setting"], written["B"], written["K"], written["variance"], written["pairs"]) == (
        "8x16+strat", "8", "16", "2", "9",
    )  # fmt: skip
    assert (written["paper_variance"], written["paper_reduction"]) == ("30.7", "32")
    assert "30.7 (32x)" in table_text([row])[1]
    head, line = table_text([row])
    assert "2 [1.5, 2.5]" in line
    for title, cell in (("pairs", " 9"), ("s a gradient", " 0.5")):  # columns that end alike
        end = head.index(title) + len(title)
        assert line[:end].endswith(cell)
    few = replace(row, pairs=7, variance=Interval(2.0), reduction=Interval(31.0))
    line, why = table_text([few])[1:]
    assert "[" not in line
    assert line.split()[:5] == ["8x16+strat", "2", "1", "31", "7"]
    assert why == "Intervals are shown from 8 pairs on: raise --pairs or --budget."
