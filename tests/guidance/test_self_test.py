"""Whether a teacher predicts noise: a good one passes, one that is misread is named, and nobody's draws change."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_families import build_family

from carv_3d.attribution.request import AttributeOptions
from carv_3d.attribution.training_rows import load_model
from carv_3d.distill.command import load_teacher as load_settings
from carv_3d.errors import CarvError
from carv_3d.guidance.self_test import LEVELS, noise_errors, warn_if_poor
from carv_3d.teachers.load import load_teacher


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_teacher("carv-tiny", device="cpu")


def test_carv_tiny_predicts_noise_in_less_than_a_second(tiny: Any) -> None:
    state = torch.get_rng_state()
    begin = time.process_time()
    errors = noise_errors(tiny)
    assert time.process_time() - begin < 1
    assert len(errors) == len(LEVELS)
    assert max(errors) < 0.8
    assert torch.equal(torch.get_rng_state(), state)
    assert not tiny._embeddings


def test_a_teacher_that_is_misread_is_named(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    warn_if_poor(tiny)
    assert not caplog.records
    kind = tiny.prediction_type
    tiny.prediction_type = "sample"  # the noise is taken for the latents
    try:
        warn_if_poor(tiny)
    finally:
        tiny.prediction_type = kind
    assert "predicts noise no better than zero would" in caplog.text


def test_a_velocity_of_zero_is_no_prediction_of_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(str(build_family("Stable Diffusion 3", tmp_path / "model")), device="cpu")
    monkeypatch.setattr(teacher, "predict", lambda z, t, text: torch.zeros_like(z))
    assert min(noise_errors(teacher)) >= 1  # though z_t itself is close to the noise at the last level


def test_a_prediction_that_is_not_finite_is_named(
    tiny: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "predict", lambda z, t, text: z * float("nan"), raising=False)
    warn_if_poor(tiny)
    assert "nan %" in caplog.text


def test_a_network_that_cannot_be_run_is_one_sentence(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json may hold what its classes take and its layers do not, such as a mapping for a number."""

    def broken(*_: Any) -> None:
        raise TypeError("group_norm(): argument 'eps' must be float, not dict")

    monkeypatch.setattr(tiny, "predict", broken, raising=False)
    with pytest.raises(CarvError, match=r"cannot be run \(group_norm.*get the folder anew"):
        warn_if_poor(tiny)


def test_memory_that_runs_out_is_left_to_the_run(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(tiny, "predict", full, raising=False)
    warn_if_poor(tiny)


@pytest.mark.parametrize("command", ["attribute", "distill"])
def test_every_run_tries_a_model_that_is_not_built_in(
    command: str, sd_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of random weights; `carv generate` and those that train with it are in tests/generate."""
    for name in (str(sd_folder), "carv-tiny"):
        caplog.clear()
        if command == "attribute":
            load_model(AttributeOptions(query="mug"), name)
        else:
            options: Any = SimpleNamespace(device="cpu", precision="float32")
            load_settings(SimpleNamespace(model=name, options=options))  # type: ignore[arg-type]
        assert ("predicts noise no better than zero would" in caplog.text) == (name != "carv-tiny")
