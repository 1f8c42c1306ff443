"""The options of a distillation: their limits, and that something reads each of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import carv_3d
from carv_3d.config.reader import read_options
from carv_3d.core.options import SamplingOptions
from carv_3d.distill.options import DistillOptions
from carv_3d.distill.request import read_distill_options
from carv_3d.errors import CarvError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 0}, "num_draws is 0; it must be a whole number from 1 to"),
        ({"num_draws": 3, "antithetic": True}, "set num_draws to 4 or antithetic to false"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1 to 65,536"),
        ({"stratify": "rendr"}, "did you mean render"),
        ({"precision": "half"}, "precision is 'half'; it must be one of float32, bf16, fp16"),
        ({"objective": "sds"}, "objective is 'sds'; it must be one of dmd, kl\\."),
        ({"lr": 0.0}, "lr is 0.0; it must be a number above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0; it must be a number above 0"),
        ({"grad_clip": 1.0}, "no option 'grad_clip'; did you mean max_grad_norm"),
        ({"betas": (0.9, 1.0)}, "must be a list of 2 numbers of at least 0 and below 1"),
        ({"fake_updates": 101}, "fake_updates is 101; it must be a whole number from 1 to 100"),
        ({"ema": 1.0}, "must be a number of at least 0 and below 1"),
        ({"min_step_percent": 0.9, "max_step_percent": 0.5}, "the first is never the larger"),
        ({"min_step_percent": [0.1, 0.2, 5]}, "must be a number from 0 to 1"),
        ({"seed": 2**63}, "seed is"),
    ],
)
def test_options_know_their_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CarvError, match=message):
        DistillOptions(**options)


def test_options_of_the_last_version_are_read() -> None:
    assert read_options(DistillOptions(), {"grad_clip": 3.0}).max_grad_norm == 3.0


def test_the_estimator_has_the_options_and_the_teachers_range() -> None:
    options = DistillOptions(num_draws=6, proposal="adaptive", stratify="global", antithetic=True, max_batch=5)
    estimator = options.estimator(50, rank=1, world_size=2)
    for name in SamplingOptions.declared():
        assert getattr(estimator, name) == getattr(options, name)
    assert (estimator.min_step, estimator.max_step, estimator.weighting) == (1, 49, "uniform")
    assert (estimator.rank, estimator.world_size) == (1, 2)


def test_every_option_is_read_by_something() -> None:
    """Those that `estimator` passes on, and what has its path made absolute, do not count."""
    files = sorted((Path(carv_3d.__file__).parent / "distill").glob("*.py"))
    trees = [ast.parse(f.read_text(encoding="utf-8")) for f in files if f.name not in ("options.py", "request.py")]
    read = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == "options"
    }
    passed_on = {*SamplingOptions.declared(), "min_step_percent", "max_step_percent"}
    assert set(DistillOptions.declared()) - read <= passed_on
    assert "estimator" in read


def test_options_are_read_over_a_base() -> None:
    base = DistillOptions(num_draws=8)
    o = read_distill_options(["lr=1e-3", "betas=[0.5, 0.9]", "antithetic=true"], 7, base)
    assert (o.num_draws, o.lr, o.betas, o.antithetic, o.seed) == (8, 1e-3, (0.5, 0.9), True, 7)
    with pytest.raises(CarvError, match="the options cannot be resolved"):
        read_distill_options(["lr=${nothing}"])
    with pytest.raises(CarvError, match="'=3' is no option: write key=value, such as num_draws=8"):
        read_distill_options(["=3"])
