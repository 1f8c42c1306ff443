"""Shared fixtures: a Stable Diffusion folder with random weights, small enough to build in a second."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carv_3d.cli.threads import settle_threads

settle_threads()  # before torch is loaded

import torch  # noqa: E402
from small_models import as_v_prediction, build_sd_folder, build_xl_folder  # noqa: E402


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(torch.get_num_threads(), 2))


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Ctrl-C and SIGHUP end a process, which nohup and a shell's background jobs have ignored."""
    ends = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in ends.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight epsilon model in the diffusers folder format. Read only: copy before you change it."""
    return build_sd_folder(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def build_folder() -> Any:
    """`build_sd_folder`, for models of other sizes."""
    return build_sd_folder


@pytest.fixture(scope="session")
def sd_folder_512(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the sizes that threestudio writes out: images of 512, latents of 64, 77 tokens."""
    return build_sd_folder(tmp_path_factory.mktemp("sd512") / "model", latent=64, context=77, levels=4)


@pytest.fixture(scope="session")
def v_prediction_folder(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, read as a v-prediction model."""
    return as_v_prediction(sd_folder, tmp_path_factory.mktemp("sd_v") / "model")


@pytest.fixture(scope="session")
def v_folder_512(sd_folder_512: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `sd_folder_512`, read as a v-prediction model."""
    return as_v_prediction(sd_folder_512, tmp_path_factory.mktemp("sd512_v") / "model")


@pytest.fixture(scope="session")
def sd_teacher(sd_folder: Path) -> Any:
    """The model of `sd_folder`, loaded on the CPU. Frozen: share it."""
    from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher

    return StableDiffusionTeacher.load(str(sd_folder), device="cpu")


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Stable Diffusion XL in the diffusers folder format. Read only: copy before you change it."""
    return build_xl_folder(tmp_path_factory.mktemp("sdxl"))
