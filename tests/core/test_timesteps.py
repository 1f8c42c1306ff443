"""Timesteps and samples that a schedule cannot take: one sentence each, and none is taken silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError

VP, FLOW, EDM = NoiseSchedule.scaled_linear(), NoiseSchedule.flow(), NoiseSchedule.edm()
Z, EPS, T = torch.ones(3, 2, 4), torch.zeros(3, 2, 4), torch.tensor([0, 500, 999])

CALLS: dict[str, Callable[[Any], Any]] = {
    "alpha": VP.alpha,
    "sigma": EDM.sigma,
    "snr": FLOW.snr,
    "norm": VP.norm,
    "norm of edm": EDM.norm,
    "w": VP.w,
    "w of a table": lambda t: VP.w(t, torch.ones(1000)),
    "add_noise": lambda t: VP.add_noise(Z, EPS, t),
    "target": lambda t: VP.target("v_prediction", Z, EPS, t),
    "eps_from": lambda t: FLOW.eps_from("flow_prediction", Z, EPS, t),
    "z_from": lambda t: EDM.z_from("edm", Z, EPS, t),
    "network_input": lambda t: VP.network_input(Z, t),
    "network_input of flow": lambda t: FLOW.network_input(Z, t),
}
WRONG: dict[str, tuple[Any, str]] = {
    "float": (torch.tensor([0.0, 500.0, 999.0]), r"t is of type torch.float32; timesteps are integers: t.long\(\)"),
    "without data": (torch.tensor([0, 500, 999], device="meta"), "t is a tensor.*; it must be a tensor of integer"),
    "mask": (torch.tensor([True, False, True]), "t is of type torch.bool"),
    "negative": (torch.tensor([5, -1, 7]), "t goes from -1 to 7; the timesteps of this schedule are 0 to 999"),
    "beyond": (torch.tensor([5, 1000, 7]), "t goes from 5 to 1000; the timesteps of this schedule are 0 to 999"),
    "number": (500, r"t is 500; it must be a tensor of integer timesteps, as torch.tensor\(\[500\]\)"),
    "list": ([1, 2, 3], "t is a list; it must be a tensor"),
    "none": (None, "t is None; it must be a tensor"),
    "text": ("500", "t is '500'; it must be a tensor"),
    "array": (np.array([1, 2, 3]), "t is a ndarray; it must be a tensor"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", WRONG)
def test_timesteps_that_cannot_be_are_named(name: str, kind: str) -> None:
    t, sentence = WRONG[kind]
    with pytest.raises(CarvError, match=sentence):
        CALLS[name](t)


@pytest.mark.parametrize("name", CALLS)
def test_each_takes_timesteps_of_both_types(name: str) -> None:
    first, second = (CALLS[name](t) for t in (T, T.int()))
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, check_dtype=False)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: VP.add_noise(Z, EPS, T[:2]), r"t has shape \(2,\) for z of \(3, 2, 4\); it must be \(3,\)"),
        (lambda: VP.target("epsilon", Z, EPS, T[:2]), r"t has shape \(2,\) for z"),
        (lambda: VP.network_input(Z, T[:2]), r"t has shape \(2,\) for z_t"),
        (lambda: VP.z_from("epsilon", Z, EPS, T[:2]), r"t has shape \(2,\) for z_t"),
        (lambda: VP.eps_from("epsilon", Z, EPS, T[:2]), r"t has shape \(2,\) for z_t"),
        (lambda: VP.add_noise(Z, EPS.to("meta"), T), r"eps is on meta and z on cpu: eps\.to\(z\.device\), say\."),
        (lambda: VP.add_noise(Z, EPS[:1], T), r"eps has shape \(1, 2, 4\) and z \(3, 2, 4\); they must be equal"),
        (lambda: VP.z_from("epsilon", Z, EPS[:, :1], T), r"prediction has shape \(3, 1, 4\) and z_t \(3, 2, 4\)"),
        (lambda: VP.add_noise(Z.long(), EPS, T), r"z is \(3, 2, 4\) of torch.int64; .* of floating-point numbers"),
        (lambda: VP.add_noise(Z, None, T), r"eps is None; it must be a tensor \(N, ...\)"),  # type: ignore[arg-type]
        (lambda: VP.add_noise(torch.tensor(1.0), torch.tensor(1.0), T), r"z is \(\) of torch.float32"),
        (lambda: VP.target(["v"] * 99, Z, EPS, T), r"prediction_type is \['v', .* [.]{3}; it must be one of"),  # type: ignore[arg-type]
        (lambda: VP.to("meta:x"), "device is 'meta:x'; it must be a device"),
        (lambda: VP.to([0]), "device is a list; it must be a device such as cpu, or text"),  # type: ignore[arg-type]
    ],
)
def test_samples_that_cannot_be_are_named(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(CarvError, match=sentence):
        call()


def test_one_timestep_goes_with_all_samples_and_one_sample_with_all_timesteps() -> None:
    assert torch.equal(VP.add_noise(Z, EPS, T[1:2]), VP.add_noise(Z, EPS, T[[1, 1, 1]]))
    assert torch.equal(VP.add_noise(Z, EPS, T[1]), VP.add_noise(Z, EPS, T[[1, 1, 1]]))
    assert VP.add_noise(Z[:1], EPS[:1], T).shape == Z.shape


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_a_device_that_is_absent_is_one_sentence() -> None:
    for device in ("cuda", "cuda:7", torch.device("cuda")):
        with pytest.raises(CarvError, match=r"device is cuda.*, which torch cannot use here \(.*\); give cpu, or see"):
            VP.to(device)
