"""GaussianDreamer's system on a CPU, for `host_gaussiandreamer.py` (does it run?) and `hosts.py` (what is gained?).

Random points stand where Shap-E would make them; they are splatted in PyTorch (`host_stand_ins`).
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host_drivers import GRAPHICS, PROMPT, SCALE, TEACHER, EpsUNet, Loop, inside
from host_loops import hunks
from host_stand_ins import on_cpu, splatting, stand_in
from torch import Tensor

from carv_3d.teachers.availability import resolve_model

ROOT = Path(__file__).resolve().parents[1]
ABSENT = [*GRAPHICS, "shap_e", "tinycudann", "igl", "envlight", "wandb", "xformers", "bitsandbytes"]
SMALL = [
    f'system.prompt_processor.prompt="{PROMPT}"', "system.prompt_processor.spawn=false",
    "system.guidance.half_precision_weights=false", "trainer.precision=32", "use_timestamp=false", "tag=trial",
    "system.load_type=1",  # with 0 it keeps Shap-E's own images too
]  # fmt: skip
"""What a CPU run sets in its configuration, but for the sizes."""
CONFIG = "configs/gaussiandreamer-sd.yaml"
STOCK, OURS = "stable-diffusion-guidance", "carv-stable-diffusion-guidance"
STEP = 100  # of the run: no guidance images, which it makes every 200 steps; its range of timesteps changes after 500


def link_extension(folder: Path) -> None:
    """The extension, into the `custom` of a patched copy."""
    (folder / "custom").mkdir()
    (folder / "custom" / "threestudio-carv").symlink_to(ROOT / "custom" / "threestudio-carv")


def on_the_cpu(folder: Path, points: int) -> None:
    """What GaussianDreamer needs of CUDA and of Shap-E, in this process; its scene begins from so many points."""
    stand_in(folder, ABSENT)
    splatting()
    rasterizer: Any = sys.modules["diff_gaussian_rasterization"]
    whole = rasterizer.GaussianRasterizer

    class WithoutAlpha(whole):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)[:3]  # image, radii and depth, as its version of the rasterizer

    rasterizer.GaussianRasterizer = WithoutAlpha
    on_cpu()
    sys.path.insert(0, str(folder))
    importlib.import_module("threestudio.utils.misc").tcnn.free_temporary_memory = lambda: None
    module: Any = importlib.import_module("threestudio.systems.GaussianDreamer")
    module.GaussianDreamer.pcb = lambda self: random_points(module.BasicPointCloud, points)
    module.load_ply = lambda *_: None  # a colored copy of the result, by open3d


def random_points(kind: Any, count: int) -> Any:
    """So many points around the origin, with colors."""
    source = np.random.default_rng(0)
    points, colors = source.normal(size=(count, 3)) * 0.3, source.random((count, 3))
    return kind(points=points, colors=colors, normals=np.zeros((count, 3)))


class Sides:
    """threestudio's guidance and the extension's in one place: `num_draws` 0 is the former, K the latter with K draws.

    make: a guidance by its type and the options that differ from those of all; each is made once.
    before: called before each call.
    """

    def __init__(self, make: Callable[..., Any], before: Callable[[], None]) -> None:
        self._make, self._before = make, before
        self._more: dict[str, Any] = {}
        self._made: dict[Any, Any] = {}
        self.num_draws = 0

    @property
    def num_draws(self) -> int:
        """Of the guidance that is called now; a change makes it, so that a call loads and draws nothing for it."""
        return self._num_draws

    @num_draws.setter
    def num_draws(self, K: int) -> None:
        self._num_draws = K
        key = (K, *self._more.values()) if K else STOCK
        if key not in self._made:
            self._made[key] = self._make(OURS, num_draws=K, **self._more) if K else self._make(STOCK)
            if K:
                self._made[key]._carv.generator = torch.default_generator  # so that seeds are the caller's
        self._current = self._made[key]

    @contextmanager
    def uniform(self) -> Iterator[None]:
        """For a while the extension's draws are uniform and without strata, once `num_draws` is set."""
        self._more = {"proposal": "uniform", "stratify": "none"}
        yield
        self._more = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._before()
        return self._current(*args, **kwargs)

    @property
    def vae(self) -> Any:
        """Its autoencoder."""
        return self._model.vae

    @property
    def unet(self) -> Any:
        """Its UNet."""
        return self._model.unet

    @property
    def _model(self) -> Any:
        return self._current._carv.teacher if self.num_draws else self._current


def gaussiandreamer(folder: Path, model: Path) -> Loop:
    """Its system's training_step on four of its random cameras: 100 Gaussians at 64 x 64.

    Where the update begins, so do its statistics for densification: they are no part of the step.
    """
    link_extension(folder)
    with inside(folder):
        on_the_cpu(folder, points=100)
        host, config = (importlib.import_module(name) for name in ("threestudio", "threestudio.utils.config"))
        (lines,) = hunks("gaussiandreamer").values()  # of the patch, which load the extension
        exec(compile(textwrap.dedent(lines), "gaussiandreamer.patch", "exec"), {"threestudio": host, "sys": sys})
        words = [*SMALL, "data.width=64", "data.height=64", 'system.prompt_processor.negative_prompt=""']
        cfg = config.load_config(CONFIG, cli_args=words)
        system = host.find(cfg.system_type)(cfg.system)
        system.set_resume_status(0, STEP)
        system.log = lambda *_, **__: None
        system.configure_optimizers()
        data = host.find(cfg.data_type)(cfg.data)
        data.setup("fit")
    options = {**cfg.system.guidance, "guidance_scale": SCALE - 1, "view_dependent_prompting": False}

    def load(model: Path | str, eps_unet: EpsUNet | None = None) -> None:
        def make(kind: str, **more: Any) -> Any:
            path = str(resolve_model(str(model)))
            guidance = host.find(kind)({**options, "pretrained_model_name_or_path": path, **more})
            guidance.update_step(0, STEP)
            if kind == STOCK and eps_unet is not None:
                guidance.unet = eps_unet
            return guidance

        with inside(folder):
            texts = {**cfg.system.prompt_processor, "pretrained_model_name_or_path": str(model)}
            system.prompt_processor = host.find("carv-stable-diffusion-prompt-processor")(texts)
        system.guidance = loop.guidance = Sides(make, before=reseed)

    def reseed() -> None:
        if loop.draw_seed is not None:
            torch.manual_seed(loop.draw_seed)

    def loss(images: Tensor) -> Tensor:
        views = {name: torch.zeros(len(images)) for name in ("elevation", "azimuth", "camera_distances")}
        return loop.guidance(images.permute(0, 2, 3, 1), system.prompt_processor(), **views)["loss_sds"]

    def backward() -> None:
        system.training_step(data.train_dataset.collate(None), 0)["loss"].backward()

    names = ("_xyz", "_features_dc", "_opacity", "_scaling", "_rotation")
    loop = Loop(
        importlib.import_module("threestudio.models.guidance.stable_diffusion_guidance"), None, loss, backward,
        lambda: [getattr(system.gaussian, n) for n in names], lambda: None, 5e-3,
        uniform=lambda: loop.guidance.uniform(), reload=lambda teacher: load(TEACHER, EpsUNet(teacher)),
    )  # fmt: skip
    load(model)
    return loop
