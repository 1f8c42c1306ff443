"""Figures of batches that were made up, by hand."""

from __future__ import annotations

import pytest
import torch
from variance_scene import SETTINGS, made_up

from carv_3d.variance.benchmark import Batch
from carv_3d.variance.figures import rows, tight, timesteps


def test_figures_by_hand() -> None:
    table = rows(7, SETTINGS, made_up((7.0, 3.0), (9.0, 5.0)))
    assert [row.variance.value for row in table] == [9, 10, 6]
    assert table[2].ecm.value == pytest.approx(9 * 3 / (6 * 2))
    assert table[2].re is not None
    assert table[2].re.value == pytest.approx(10 / 6)
    assert table[2].bound == pytest.approx(9 * 3 / (2 * 1))  # upstream variance alone, without the denoising's second
    assert table[2].upstream_share == pytest.approx(2 / 6)
    assert [(row.s_out2, row.v_in) for row in table] == [(1, 8), (2, 8), (2, 4)]
    assert [(row.seconds, row.batches) for row in table] == [(3, 2), (2, 2), (2, 2)]
    assert not table[2].ecm.known  # two batches
    wide = rows(7, SETTINGS, made_up(*[(7.0, 3.0), (9.0, 5.0)] * 4))
    assert 27 / 14 < wide[2].ecm.low < wide[2].ecm.value < wide[2].ecm.high < 27 / 10
    expensive = rows(7, SETTINGS, made_up((7.0, 3.0), (9.0, 5.0)), upstream=10.0)
    assert expensive[2].ecm.value == pytest.approx(9 * 21 / (6 * 11))
    assert not tight(table, 0.1)
    assert not tight(wide, 0.1)
    assert tight(rows(7, SETTINGS, made_up(*[(8.0, 4.0)] * 8)), 0.1)
    assert not tight(rows(7, SETTINGS, made_up(*[(8.0, 4.0)] * 7)), 0.1)


def test_the_interval_knows_of_the_seconds() -> None:
    """Variances are alike in all batches; the seconds of one method are 1 in a third of them and else 2."""
    batches = made_up(*[(8.0, 4.0)] * 9)
    for b in batches[:3]:
        b.seconds = b.seconds | {"1,2,is": {"step": 1.0, "denoise": 0.5}}
    uniform, single = rows(7, SETTINGS, batches)[1:]
    assert uniform.ecm.low == uniform.ecm.value == uniform.ecm.high == pytest.approx(9 * 3 / (10 * 2))
    assert single.seconds == 2.0
    assert single.ecm.value == single.ecm.low == pytest.approx(9 * 3 / (6 * 2))
    assert single.ecm.high == pytest.approx(9 * 3 / (6 * 1))  # the median is 1 in more than a fortieth of resamples


def test_the_oracle_by_timestep_by_hand() -> None:
    w = torch.linspace(1, 100, 100).double()
    norms = [(t, float(w[t]) ** 2) for t in range(100)]
    same = timesteps([Batch({}, {}, {}, norms)], w, 0, 99, bins=100)
    assert same.share == pytest.approx(1)  # the weight is the oracle
    flat = timesteps([Batch({}, {}, {}, [(t, 4.0 if t < 50 else 1.0) for t in range(100)])], w, 0, 99, bins=2)
    assert flat.norm == [2, 1]
    assert flat.oracle == pytest.approx([2 / 3, 1 / 3])
    assert flat.share < 0  # w rises where the gradient falls
