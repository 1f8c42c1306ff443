"""Where a run's figures go besides metrics.csv: TensorBoard or Weights & Biases, under the names of its columns."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from carv_3d.errors import CarvError, first_line, require
from carv_3d.io.files import write_atomic
from carv_3d.io.structured import read_text
from carv_3d.runs.names import TENSORBOARD, WANDB_ID

PROJECT = "carv_3d"


class Logger:
    """What is given a run's figures, images and mesh. This one keeps nothing: metrics.csv has the figures."""

    keeps = False

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """The figures of a step by the names of metrics.csv's columns; those that are not finite are left out."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A PNG."""

    def mesh(self, step: int, mesh: Any, path: Path) -> None:
        """A trimesh with a texture, and the GLB that holds it."""

    def close(self) -> None:
        """Hand over what is left."""


class TensorBoardLogger(Logger):
    """Event files in the run's folder: `tensorboard --logdir FOLDER`. A resumed run takes the later steps back."""

    keeps = True

    def __init__(self, folder: Path, step: int) -> None:
        """step: the last one that is done."""
        require("tensorboard", "loggers", "logger=tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1 if step else None)

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """As of `Logger`."""
        for name, value in _finite(row).items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        """As of `Logger`."""
        from carv_3d.io.images import opened_image

        with opened_image(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def mesh(self, step: int, mesh: Any, path: Path) -> None:
        """As of `Logger`."""
        import torch

        colors = torch.as_tensor(mesh.visual.to_color().vertex_colors[None, :, :3].copy())
        vertices, faces = (torch.as_tensor(array[None].copy()) for array in (mesh.vertices, mesh.faces))
        self._writer.add_mesh("asset", vertices.float(), colors, faces.int(), global_step=step)

    def close(self) -> None:
        """As of `Logger`."""
        self._writer.close()


class WandbLogger(Logger):
    """A run of Weights & Biases in the project carv_3d; `WANDB_MODE=offline` keeps it in the run's folder.

    Figures lie over their own column "step", so that a resumed run may give some steps again.
    """

    keeps = True

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """folder: of the run; its id is kept there. config: what the run was asked for."""
        wandb = _wandb()
        path = folder / WANDB_ID
        if not path.exists():
            write_atomic(path, secrets.token_hex(4))
        name = read_text(path, "delete it, and the run has a new one").strip()
        if not name.isalnum() or len(name) > 64:
            raise CarvError(f"{path} holds no id of Weights & Biases; delete it, and the run has a new one")
        try:
            self._run = wandb.init(
                project=PROJECT, name=folder.name, id=name, dir=str(folder), resume="allow", config=dict(config)
            )
        except Exception as error:  # of many kinds: no login, no network
            raise CarvError(_cannot_begin(error)) from error
        self._run.define_metric("*", step_metric="step")
        self._wandb = wandb

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """As of `Logger`."""
        self._run.log({**_finite(row), "step": step})

    def image(self, step: int, name: str, path: Path) -> None:
        """As of `Logger`."""
        self._run.log({name: self._wandb.Image(str(path)), "step": step})

    def mesh(self, step: int, mesh: Any, path: Path) -> None:
        """As of `Logger`."""
        self._run.log({"asset": self._wandb.Object3D(str(path)), "step": step})

    def close(self) -> None:
        """As of `Logger`."""
        with suppress(Exception):  # the run itself is whole, whatever the network does
            self._run.finish()


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
    return require("wandb", "loggers", "logger=wandb")


def _cannot_begin(error: Exception) -> str:
    return f"Weights & Biases cannot begin ({first_line(error)}); run wandb login, or set WANDB_MODE=offline"


def _finite(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and math.isfinite(value)}


def make_logger(kind: str, folder: Path, step: int, config: Mapping[str, Any]) -> Logger:
    """The logger of that name.

    Args:
        kind: csv, tensorboard or wandb.
        folder: of the run.
        step: the last one that is done.
        config: what the run was asked for.

    Raises:
        CarvError: its package is missing, or it cannot begin.
    """
    if kind == "tensorboard":
        return TensorBoardLogger(folder, step)
    return WandbLogger(folder, config) if kind == "wandb" else Logger()


def check_logger(kind: str) -> None:
    """CarvError, before any work, where the package of a logger is missing, or Weights & Biases has no key.

    On a terminal, Weights & Biases asks for a key.
    """
    if kind != "csv" and importlib.util.find_spec(kind) is None:
        require(kind, "loggers", f"logger={kind}")
    if kind == "wandb" and os.environ.get("WANDB_MODE", "online") == "online":
        _log_in()


@functools.cache
def _log_in() -> None:
    """Once a process: it asks the server who this is."""
    wandb = _wandb()
    try:
        wandb.login(verify=False)  # whether a key is valid is known when the run begins
    except Exception as error:
        raise CarvError(_cannot_begin(error)) from error
