"""MVDream's own package at a tiny size, and the stock guidance of threestudio-mvdream.

CARV_MVDREAM names a checkout of the package, CARV_THREESTUDIO_MVDREAM one of the extension. Neither is in this
repository.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
import yaml

KIND = "mvdream-multiview-diffusion-guidance"
PLACES = ("CARV_THREESTUDIO_MVDREAM", "CARV_MVDREAM")
CONFIG = Path(__file__).with_suffix(".yaml")
WIDTH, VIEWS, IMAGE_SIZE = 16, 4, 16
"""Of the text; views of an object; their side in pixels."""


def here() -> bool:
    """Whether both checkouts are named."""
    return all(os.environ.get(name) for name in PLACES)


def extension() -> Path:
    """The checkout of threestudio-mvdream."""
    return Path(os.environ[PLACES[0]]).resolve()


def install() -> None:
    """The package, with the tiny model's configuration for any name, and without what it needs setuptools for."""
    sys.path.append(str(Path(os.environ[PLACES[1]]).resolve()))
    if importlib.util.find_spec("pkg_resources") is None:
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
    importlib.import_module("mvdream.model_zoo").get_config_file = lambda name: str(CONFIG)


def write(folder: Path) -> str:
    """The file of random weights, made in a folder."""
    install()
    config = yaml.safe_load(CONFIG.read_text())["model"]
    torch.manual_seed(0)
    model = importlib.import_module("mvdream.ldm.util").instantiate_from_config(config)
    for parameter in model.parameters():  # some begin at zero, which would hide what goes through them
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "model.pt")
    return str(folder / "model.pt")


def load_stock(threestudio: Any) -> None:
    """Register the stock guidance alone, without the rest of its extension."""
    spec = importlib.util.spec_from_file_location("stock_mvdream", extension() / "guidance" / "mvdream_guidance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threestudio.__modules__.pop(KIND, None)
    spec.loader.exec_module(module)


def link(workdir: Path) -> None:
    """The extension in the `custom/` of a folder where threestudio's launcher will run."""
    (workdir / "custom").mkdir(parents=True, exist_ok=True)
    place = workdir / "custom" / "threestudio-mvdream"
    if not place.is_symlink():
        place.symlink_to(extension())
