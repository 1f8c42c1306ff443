"""The least of threestudio that an extension meets: its registry, its base classes, its prompt processors' output.

It keeps threestudio 0.2.3's contract (structured configs, text before unconditional, Perp-Neg's negatives interleaved
by item, `update_step` before each batch); tests against a real checkout run where CARV_THREESTUDIO names one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

VIEWS = {
    "elevation": torch.tensor([15.0, 20.0]), "azimuth": torch.tensor([0.0, 90.0]),
    "camera_distances": torch.tensor([1.5, 2.0]), "rays_o": None, "height": 64,
    "c2w": torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1)),
    "mvp_mtx": torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2)),
}  # fmt: skip
"""Of two renders, some of what threestudio's batches have."""

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


class BaseModule(torch.nn.Module):
    @dataclass
    class Config:
        weights: str | None = None

    def __init__(self, cfg: dict | None = None) -> None:
        super().__init__()
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
        view_dependent_prompt_front: bool = False

    def configure(self) -> None:
        self.read_from = self.cfg.pretrained_model_name_or_path
        self.prompt, self.prompts_vd = view_prompts(self)

    def preprocess_prompt(self, prompt: str) -> str:
        return prompt


def view_prompts(processor: Any) -> tuple[str, list[str]]:
    """The prompt and that of each view, as threestudio's base makes them."""
    view = "{1} view of {0}" if getattr(processor.cfg, "view_dependent_prompt_front", False) else "{0}, {1} view"
    names = ("side", "front", "back", "overhead")
    processor.directions = [types.SimpleNamespace(prompt=lambda s, name=name: view.format(s, name)) for name in names]
    prompt = processor.preprocess_prompt(processor.cfg.prompt)
    return prompt, [direction.prompt(prompt) for direction in processor.directions]


class BasePromptProcessor(BaseObject):
    """threestudio's base: a file of embeddings for each prompt, written by `spawn_func`, then read back."""

    @dataclass
    class Config(BaseObject.Config):
        pretrained_model_name_or_path: str = ""
        prompt: str = "a hamburger"
        negative_prompt: str = ""
        cache_dir: str = ""

    def configure(self) -> None:
        self._cache_dir = self.cfg.cache_dir
        self.prompt, self.prompts_vd = view_prompts(self)
        self.prepare_text_embeddings()

    def preprocess_prompt(self, prompt: str) -> str:
        return prompt

    def prepare_text_embeddings(self) -> None:
        Path(self._cache_dir).mkdir(parents=True, exist_ok=True)
        prompts = [self.prompt, self.cfg.negative_prompt, *self.prompts_vd]
        self.spawn_func(self.cfg.pretrained_model_name_or_path, prompts, self._cache_dir)

    @staticmethod
    def spawn_func(pretrained_model_name_or_path: str, prompts: list[str], cache_dir: str) -> None:
        raise NotImplementedError

    def load_from_cache(self, prompt: str) -> Tensor:
        name = hash_prompt(self.cfg.pretrained_model_name_or_path, prompt)
        return torch.load(Path(self._cache_dir) / f"{name}.pt")


def hash_prompt(model: str, prompt: str) -> str:
    return hashlib.md5(f"{model}-{prompt}".encode()).hexdigest()


class System:
    """What a Lightning module does around checkpoints."""

    guidance: Any = None
    trains = False

    def __init__(self, cfg: Any = None) -> None:
        self.built = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.own = checkpoint["own"]

    def on_fit_start(self) -> None:
        pass

    def train(self) -> None:
        self.trains = True


@dataclass
class PromptUtils:
    """Of B items: text embeddings (B, L, D), unconditional (B, L, D), negatives (B, 2, L, D), weights (B, 2)."""

    text: Tensor
    uncond: Tensor
    negatives: Tensor | None = None
    weights: Tensor | None = None
    from_all_sides: Tensor | None = None  # text (B, L, D) that says nothing of the view
    asked: list[bool] = field(default_factory=list)  # whether text by view was asked for, call by call

    @property
    def use_perp_neg(self) -> bool:
        return self.negatives is not None

    def get_text_embeddings(self, elevation: Tensor, azimuth: Tensor, distances: Tensor, by_view: bool) -> Tensor:
        assert len(elevation) == len(azimuth) == len(distances) == len(self.text)
        self.asked.append(by_view)
        if not by_view:
            assert self.from_all_sides is not None
            return torch.cat([self.from_all_sides, self.uncond])
        return torch.cat([self.text, self.uncond])

    def get_text_embeddings_perp_neg(
        self, elevation: Tensor, azimuth: Tensor, distances: Tensor, by_view: bool
    ) -> tuple[Tensor, Tensor]:
        assert self.negatives is not None
        assert self.weights is not None
        return torch.cat([self.text, self.uncond, self.negatives.flatten(0, 1)]), self.weights


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
    host.find = host.modules.__getitem__  # type: ignore[attr-defined]
    host.info = lambda *_: None  # type: ignore[attr-defined]
    base = types.ModuleType("threestudio.utils.base")
    base.BaseObject = BaseObject  # type: ignore[attr-defined]
    base.BaseModule = BaseModule  # type: ignore[attr-defined]
    own = "threestudio.models.prompt_processors.stable_diffusion_prompt_processor"
    processors = types.ModuleType(own)
    processors.StableDiffusionPromptProcessor = PromptProcessor  # type: ignore[attr-defined]
    own_base = "threestudio.models.prompt_processors.base"
    base_processors = types.ModuleType(own_base)
    base_processors.PromptProcessor = BasePromptProcessor  # type: ignore[attr-defined]
    base_processors.hash_prompt = hash_prompt  # type: ignore[attr-defined]
    parents = ("threestudio.utils", "threestudio.models", "threestudio.models.prompt_processors")
    for name, module in (
        ("threestudio", host),
        ("threestudio.utils.base", base),
        (own, processors),
        (own_base, base_processors),
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
