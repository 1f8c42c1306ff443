"""What the extension's tests share: the host double with the extension loaded into it, renders, guidances."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import host_double as double
import recorded_parity as recorded


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read once, from the environment


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """threestudio's double; `modules` has the extension's classes by name."""
    return double.install(monkeypatch)


@pytest.fixture(scope="session")
def folder(build_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Stable Diffusion of the recordings. Read only."""
    return recorded.write_model(build_folder, tmp_path_factory.mktemp("recorded") / "model")


@pytest.fixture(scope="session")
def v_folder(build_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, read as a v-prediction model."""
    return recorded.write_model(build_folder, tmp_path_factory.mktemp("recorded_v") / "model", "v_prediction")


@pytest.fixture
def rgb() -> Tensor:
    """Two renders (2, 16, 16, 3)."""
    return torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def make(host: Any, sd_folder: Path) -> Callable[..., Any]:
    """A `carv-stable-diffusion-guidance` with these options."""

    def build(**cfg: Any) -> Any:
        given = {"pretrained_model_name_or_path": str(sd_folder), "seed": 0, "vae_sample": False, **cfg}
        return host.modules["carv-stable-diffusion-guidance"](given)

    return build


@pytest.fixture
def make_vsd(host: Any, sd_folder: Path, v_prediction_folder: Path) -> Callable[..., Any]:
    """A `carv-vsd-guidance` with these options."""

    def build(**cfg: Any) -> Any:
        torch.manual_seed(0)
        names = {
            "pretrained_model_name_or_path": str(sd_folder),
            "pretrained_model_name_or_path_lora": str(v_prediction_folder),
        }
        return host.modules["carv-vsd-guidance"]({**names, "seed": 0, "vae_sample": False, **cfg})

    return build


@pytest.fixture
def utils(sd_teacher: Any) -> double.PromptUtils:
    """Prompts of two renders, whose text differs by view."""
    return _prompts(sd_teacher)


@pytest.fixture
def perp_neg(sd_teacher: Any) -> double.PromptUtils:
    """The same with Perp-Neg."""
    prompts = _prompts(sd_teacher)
    prompts.negatives = sd_teacher.text_embeddings(["front", "side", "back", "top"]).unflatten(0, (2, 2))
    prompts.weights = torch.tensor([[-0.5, -2.0], [0.0, -1.0]])
    return prompts


def _prompts(teacher: Any) -> double.PromptUtils:
    texts = (["a mug", "a cup"], ["bad", "worse"], ["all", "round"])
    text, uncond, from_all_sides = map(teacher.text_embeddings, texts)
    return double.PromptUtils(text, uncond, from_all_sides=from_all_sides)
