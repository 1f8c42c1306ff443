"""The least of threestudio that an extension meets: its registry, its base classes, its prompt processors' output.

It keeps threestudio 0.2.3's contract (structured configs, text before unconditional, Perp-Neg's negatives interleaved
by item, `update_step` before each batch); tests against a real checkout run where CARV_THREESTUDIO names one.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

EXTENSION = Path(__file__).parents[2] / "custom" / "threestudio-carv"


class BaseObject:
    @dataclass
    class Config:
        pass

    def __init__(self, cfg: dict | None = None) -> None:
        self.cfg = OmegaConf.structured(self.Config(**(cfg or {})))
        self.device = torch.device("cpu")
        self.configure()

    def configure(self) -> None:
        pass


class PromptProcessor(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        pretrained_model_name_or_path: str = ""
        prompt: str = "a hamburger"
        use_cache: bool = True
        spawn: bool = True

    def configure(self) -> None:
        self.read_from = self.cfg.pretrained_model_name_or_path


class System:
    """What a Lightning module does around checkpoints."""

    guidance: Any = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.own = checkpoint["own"]

    def on_fit_start(self) -> None:
        pass


@dataclass
class PromptUtils:
    """Of B items: text embeddings (B, L, D), unconditional (B, L, D), negatives (B, 2, L, D), weights (B, 2)."""

    text: Tensor
    no_text: Tensor
    negatives: Tensor | None = None
    weights: Tensor | None = None

    @property
    def use_perp_neg(self) -> bool:
        return self.negatives is not None

    def get_text_embeddings(self, elevation: Tensor, azimuth: Tensor, distances: Tensor, by_view: bool) -> Tensor:
        assert by_view is True
        assert len(elevation) == len(self.text)
        return torch.cat([self.text, self.no_text])

    def get_text_embeddings_perp_neg(
        self, elevation: Tensor, azimuth: Tensor, distances: Tensor, by_view: bool
    ) -> tuple[Tensor, Tensor]:
        assert self.negatives is not None
        assert self.weights is not None
        return torch.cat([self.text, self.no_text, self.negatives.flatten(0, 1)]), self.weights


def install(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put the double in place of threestudio and load the extension into it as threestudio's launcher does."""
    host = types.ModuleType("threestudio")
    host.modules = {}  # type: ignore[attr-defined]

    def register(name: str) -> Any:
        def decorator(cls: Any) -> Any:
            if name in host.modules:
                raise ValueError(f"Module {name} already exists!")
            host.modules[name] = cls
            return cls

        return decorator

    host.register = register  # type: ignore[attr-defined]
    host.info = lambda *_: None  # type: ignore[attr-defined]
    base = types.ModuleType("threestudio.utils.base")
    base.BaseObject = BaseObject  # type: ignore[attr-defined]
    own = "threestudio.models.prompt_processors.stable_diffusion_prompt_processor"
    processors = types.ModuleType(own)
    processors.StableDiffusionPromptProcessor = PromptProcessor  # type: ignore[attr-defined]
    prompts = types.ModuleType("threestudio.models.prompt_processors.base")
    prompts.hash_prompt = lambda model, prompt: f"{len(model)}-{prompt}"  # type: ignore[attr-defined]
    parents = ("threestudio.utils", "threestudio.models", "threestudio.models.prompt_processors")
    for name, module in (
        ("threestudio", host),
        ("threestudio.utils.base", base),
        (own, processors),
        (prompts.__name__, prompts),
        *((name, types.ModuleType(name)) for name in parents),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    for name in [m for m in sys.modules if m.startswith("threestudio-carv")]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location("threestudio-carv", EXTENSION / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "threestudio-carv", extension)
    spec.loader.exec_module(extension)
    return host
