"""The benchmark of designs: every variance that it reads off one set of draws is the one in theory."""

from __future__ import annotations

import attribution_designs as benchmark
import torch

from carv_3d.attribution import FeatureMaker, FeatureOptions
from carv_3d.attribution.choosing import contributions


def test_all_variances_are_those_in_theory(model, items) -> None:
    maker, z, S = FeatureMaker(model, FeatureOptions(dim=None)), items.latents(0), 10
    by_copy = [benchmark.variances(contributions(maker, f"copy {i}", z, None, S), (2, 10)) for i in range(80)]
    designs = {"uniform": (lambda K: 1, 1), **benchmark.DESIGNS}
    assert set(by_copy[0]) == {(title, K) for title in designs for K in (2, 10)}
    for title, K in by_copy[0]:
        strata, size = designs[title]
        mean, noise = model.module.moments(z, model.schedule, size == 2)  # given t, of a draw or a pair
        spread = mean.unflatten(0, (strata(K), -1)).var(1, unbiased=False).mean(0)
        samples = torch.tensor([copy[title, K] for copy in by_copy])
        theory = float((noise.mean(0) + spread).sum()) * size / K
        assert abs(float(samples.mean()) - theory) < 4 * float(samples.std()) / len(samples) ** 0.5, (title, K)


def test_the_table_is_of_ratios_of_means() -> None:
    by_item = [{("uniform", 2): 2 * v, ("antithetic pairs", 2): w} for v, w in ((3.0, 1.0), (5.0, 9.0))]
    rows = benchmark.table(by_item, "text")
    assert rows[0] == ["antithetic pairs", 2, "1.600", "nan", "nan", 2, "text"]
    assert rows[1][2] == "1.250"  # (1 + 9) / 2 over ((1 + 3) / 2)^2
