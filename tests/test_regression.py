"""Commands and library give the numbers of 42e1110, the version before the packages, to the last bit.

`benchmarks/regression.py` says what is recorded and how. Bits depend on the processor and on the builds of torch, numpy
and numba as well: where these are others than in the recording, results are compared to 1e-4 of their norm.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import regression
import torch

BASELINE = json.loads((Path(__file__).parent / "regression" / "baseline.json").read_text())
CASES = [pytest.param(name, marks=[pytest.mark.slow] if case.slow else []) for name, case in regression.CASES.items()]


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_before(name: str, tmp_path: Path) -> None:
    here = regression.environment()
    exact = here == BASELINE["environment"]
    if not exact:
        warnings.warn(f"compared to 1e-4: recorded on {BASELINE['environment']}, this is {here}", stacklevel=1)
    differing = regression.differences(regression.expected(BASELINE, name), regression.run_case(name, tmp_path), exact)
    assert not differing, "\n".join(differing)


def test_every_case_was_recorded_and_every_change_has_a_reason() -> None:
    assert set(BASELINE["cases"]) == set(regression.CASES)
    for name, results in BASELINE["changed"].items():
        assert set(results) <= set(BASELINE["cases"][name])
        assert all(change["reason"] and change["now"] != BASELINE["cases"][name][r] for r, change in results.items())


def test_any_bit_and_any_name_counts_but_for_the_order_of_names() -> None:
    x = torch.linspace(0, 1, 7)
    other = x.clone()
    other[5] = torch.nextafter(other[5], torch.tensor(2.0))
    base = regression.result({"a": x, "b": [1.0, 2.0], "c": None})
    assert regression.result({"c": None, "b": [1.0, 2.0], "a": x.clone()}) == base
    changes = ({"a": other}, {"a": x.double()}, {"a": x.view(7, 1)}, {"b": [2.0, 1.0]}, {"c": "none"}, {"d": 1.0})
    for change in changes:
        assert regression.result({"a": x, "b": [1.0, 2.0], "c": None, **change})[0] != base[0]
    assert regression.differences({"r": base}, {"r": regression.result({"a": other, "b": [1.0, 2.0], "c": None})})


def test_on_other_machines_the_norm_the_sum_and_the_first_values_count() -> None:
    x = torch.linspace(1, 2, 50, dtype=torch.float64)

    def near(y: torch.Tensor) -> bool:
        return not regression.differences({"r": regression.result(x)}, {"r": regression.result(y)}, exact=False)

    assert near(x * (1 + 1e-6))
    assert not near(x * (1 + 1e-3))
    assert not near(x.flip(0))
    assert not near(x[:-1])
    assert not near(torch.cat([x[:3], -x[3:]]))
    assert not near(torch.cat([x[:10], x[10:] * math.nan]))


def test_what_is_missing_or_new_is_named() -> None:
    recorded = {"r": regression.result(1.0)}
    assert regression.differences(recorded, {}) == ["r is missing"]
    assert regression.differences({}, recorded) == ["r was not there"]
