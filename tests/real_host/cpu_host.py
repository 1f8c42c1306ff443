"""A real threestudio checkout, on a machine without a GPU: for the tests and `benchmarks/threestudio.py`.

    python tests/real_host/cpu_host.py CHECKOUT CONFIG STEPS WORKDIR [key=value ...]    trains; JSON lines on stdout

threestudio says CUDA throughout. `enter` puts stand-ins for the packages that a CPU run imports and does not use, gives
the CPU for its device, and renders with dense samples in place of nerfacc's CUDA kernels. The checkout is only read.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ranks_test
import software_raster
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from carv_3d.hosts.launch import explained

EXTENSION = Path(__file__).parents[2] / "custom" / "threestudio-carv"
STOOD_IN = {
    "tinycudann", "nvdiffrast", "IPython", "controlnet_aux", "envlight", "igl", "torchvision", "wandb", "bitsandbytes",
    "mcubes", "pysdf", "xatlas", "taming",
}  # fmt: skip
SMALL = [
    "data.width=16", "data.height=16", "data.eval_width=16", "data.eval_height=16", "data.n_val_views=1",
    "data.n_test_views=2", "system.renderer.num_samples_per_ray=24", "system.prompt_processor.spawn=false",
    "system.guidance.half_precision_weights=false", "trainer.precision=32",
]  # fmt: skip
"""What a CPU run sets: small renders, no process of its own for the text encoder, single precision."""
ONE_IMAGE = [
    "data.width=16", "data.height=16", "data.resolution_milestones=[]", "data.random_camera.width=16",
    "data.random_camera.height=16", "data.random_camera.batch_size=2", "data.random_camera.resolution_milestones=[]",
    "data.random_camera.eval_width=16", "data.random_camera.eval_height=16", "data.random_camera.n_val_views=1",
    "data.random_camera.n_test_views=2",
]  # fmt: skip
"""In place of SMALL's, where the data are one image and cameras around it."""


class _Nothing(type):
    """The class of names in stand-ins: they may be imported and subclassed, not used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{cls.__name__} is a stand-in: this needs the real package, and CUDA")


def _nothing(name: str) -> Any:
    return _Nothing(name, (), {})


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012, a module's attribute

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return (lambda: None) if name == "free_temporary_memory" else _nothing(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last to be asked, so that an installed package wins; it answers threestudio's own modules only."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        root = name.partition(".")[0]
        installed = root in sys.modules and not isinstance(sys.modules[root], _StandIn)
        if root not in STOOD_IN or installed or _importer() not in ("threestudio", "extern"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _importer() -> str:
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if name != "importlib" and frame.f_globals is not globals():
            return name
        frame = frame.f_back
    return ""


def enter(checkout: str | Path) -> Any:
    """The package `threestudio` of the checkout, on the CPU. The working directory is left to the caller."""
    checkout = str(Path(checkout).resolve())
    software_raster.install()
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
        sys.meta_path.append(_Finder())
    import threestudio
    from threestudio.utils import misc

    device = misc.get_device
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("threestudio", "extern") and vars(module).get("get_device") is device:
            module.get_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
    from threestudio.data import image

    image.get_rank = lambda: torch.device("cpu")  # where its one image goes
    _render_densely()
    return threestudio


def load_extension() -> Any:
    """The extension's package, into threestudio's registry, as its launcher does; stand-ins are not seen by it."""
    if EXTENSION.name in sys.modules:
        return sys.modules[EXTENSION.name]
    spec = importlib.util.spec_from_file_location(EXTENSION.name, EXTENSION / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[EXTENSION.name] = module
    spec.loader.exec_module(module)
    return module


def resize_like(teacher: Any, *modules: Any) -> None:
    """Has threestudio's guidances resize to this model's images and latents, where they write 512 and 64 out.

    modules: of guidances; those of `stable-diffusion-guidance` and `stable-diffusion-vsd-guidance` unless given.
    """
    from threestudio.models.guidance import stable_diffusion_guidance, stable_diffusion_vsd_guidance

    modules = modules or (stable_diffusion_guidance, stable_diffusion_vsd_guidance)
    sizes = {(512, 512): (teacher.image_size,) * 2, (64, 64): (teacher.latent_size,) * 2}
    proxy = types.ModuleType("functional")
    vars(proxy).update(vars(torch.nn.functional))

    def interpolate(x: Tensor, size: tuple[int, int], **more: Any) -> Tensor:
        return torch.nn.functional.interpolate(x, sizes.get(tuple(size), size), **more)

    proxy.interpolate = interpolate  # type: ignore[attr-defined]
    for module in modules:
        module.F = proxy


def _render_densely() -> None:
    """nerfacc's occupancy grid without CUDA: the same number of constant steps for every ray, none skipped."""
    import nerfacc

    dense = nerfacc.render_weight_from_density
    if getattr(dense, "is_dense", False):
        return

    def sampling(
        self: Any, rays_o: Tensor, rays_d: Tensor, render_step_size: float = 1e-3, stratified: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        low, high = self.aabbs[0, :3], self.aabbs[0, 3:]
        a, b = (low - rays_o) / rays_d, (high - rays_o) / rays_d
        enters = torch.minimum(a, b).amax(-1, keepdim=True).clamp_min(0)
        leaves = torch.maximum(a, b).amin(-1, keepdim=True).maximum(enters)
        steps = int(float((high - low).norm()) / render_step_size) + 1
        edges = torch.arange(steps + 1, device=rays_o.device) + (float(torch.rand(())) if stratified else 0.0)
        edges = (enters + edges * render_step_size).minimum(leaves)  # beyond the box a step has no length
        rays = torch.arange(len(rays_o), device=rays_o.device).repeat_interleave(steps)
        return rays, edges[:, :-1].flatten(), edges[:, 1:].flatten()

    def render_weight_from_density(
        t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, n_rays: int = 1, **_: Any
    ) -> tuple[Tensor, ...]:
        rows = (x.reshape(n_rays, -1) for x in (t_starts, t_ends, sigmas))
        return tuple(x.flatten() for x in dense(*rows))

    by_alpha = nerfacc.render_weight_from_alpha

    def render_weight_from_alpha(alphas: Tensor, n_rays: int = 1, **_: Any) -> tuple[Tensor, ...]:
        return tuple(x.flatten() for x in by_alpha(alphas.reshape(n_rays, -1)))

    render_weight_from_density.is_dense = True  # type: ignore[attr-defined]
    nerfacc.render_weight_from_density = render_weight_from_density
    nerfacc.render_weight_from_alpha = render_weight_from_alpha
    nerfacc.OccGridEstimator.sampling = torch.no_grad()(sampling)


def settings(config: Path, pretrained: str | None = None) -> list[str]:
    """`key=value` for threestudio's command line: SMALL and encodings that need no tiny-cuda-nn, where they apply."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(config)
    overrides = list(SMALL)
    if cfg.data_type == "single-image-datamodule":
        overrides = [*ONE_IMAGE, *(word for word in SMALL if not word.startswith("data."))]
    for section, bands in (("geometry", 4), ("background", 3)):
        encoding = {"geometry": "pos_encoding_config", "background": "dir_encoding_config"}[section]
        if cfg.system.get(f"{section}_type") in ("implicit-volume", "neural-environment-map-background"):
            overrides += [f"system.{section}.{encoding}.otype=ProgressiveBandFrequency",
                      f"system.{section}.{encoding}.n_frequencies={bands}"]  # fmt: skip
    if pretrained:
        sections = ("prompt_processor", "guidance")
        overrides += [f"system.{name}.pretrained_model_name_or_path={pretrained}" for name in sections]
    return [*overrides, 'system.prompt_processor.prompt="a red mug"']


def train(
    checkout: Path,
    config: Path,
    steps: int,
    workdir: Path,
    overrides: Sequence[str] = (),
    small: Sequence[str] | None = None,
) -> None:
    """threestudio's own launcher on a config; prints a line of JSON for every step.

    small: key=value that make it fit a CPU; those of `settings` if None. workdir becomes the working directory, with
    the extension linked into its `custom/`; outputs land in it. With CARV_TEST_DEVICES=2 Lightning trains in two
    processes (gloo).
    """
    (workdir / "custom").mkdir(parents=True, exist_ok=True)
    for link, target in ((workdir / "load", checkout / "load"), (workdir / "custom" / EXTENSION.name, EXTENSION)):
        if not link.is_symlink():
            link.symlink_to(target)
    os.chdir(workdir)
    functions, _ = launcher(checkout)
    flags = dict.fromkeys(("validate", "test", "export", "gradio", "verbose", "typecheck"), False)
    given = [*(settings(config) if small is None else small), f"trainer.max_steps={steps}", *overrides]
    with contextlib.redirect_stdout(sys.stderr):
        functions["main"](argparse.Namespace(config=str(config), gpu="0", train=True, **flags), given)


def launch_as_script(checkout: Path) -> None:
    """All of launch.py on the CPU, its reading of `sys.argv` too; lines of JSON as in `train`."""
    functions, script = launcher(checkout)
    with contextlib.redirect_stdout(sys.stderr):
        exec(script, functions)


def launcher(checkout: Path) -> tuple[dict[str, Any], types.CodeType]:
    """The names of threestudio's launch.py, set up for the CPU, and what it does when it is run as a script."""
    enter(checkout)
    _train_on_the_cpu()
    file = checkout / "launch.py"
    *definitions, script = ast.parse(file.read_text()).body
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(file)}
    exec(compile(ast.Module(definitions, []), str(file), "exec"), names)
    parts = names["load_custom_modules"]

    def load_custom_modules() -> None:
        hidden = {n: sys.modules.pop(n) for n, m in list(sys.modules.items()) if isinstance(m, _StandIn)}
        parts()
        sys.modules.update(hidden)

    names["load_custom_modules"] = load_custom_modules
    return names, compile(ast.Module([script], []), str(file), "exec")


def _train_on_the_cpu() -> None:
    """Lightning's Trainer on the CPU; a line of JSON for every step."""
    import pytorch_lightning as pl

    devices = int(os.environ.get("CARV_TEST_DEVICES", "1"))
    out = sys.stdout

    class Recorder(pl.Callback):
        calls: list[str] = []  # noqa: RUF012, one recorder a process

        def setup(self, trainer: Any, system: Any, stage: str) -> None:
            if devices > 1:
                ranks_test.share_no_booleans(system)

        def on_train_batch_start(self, trainer: Any, system: Any, *_: Any) -> None:
            self.start = time.perf_counter()
            for name in ("guidance", "guidance_3d"):
                if hasattr(system, name):
                    _count_calls(getattr(system, name), self.calls)
            if devices > 1:
                ranks_test.prepare(trainer, system)

        def on_train_batch_end(self, trainer: Any, system: Any, *_: Any) -> None:
            logged = {k.removeprefix("train/"): float(v) for k, v in trainer.callback_metrics.items()}
            line: dict[str, Any] = {"step": trainer.global_step, "rank": trainer.global_rank, "logged": logged}
            line.update(guidance=type(system.guidance).__name__, seconds=time.perf_counter() - self.start)
            line.update(calls=[*self.calls], **(ranks_test.facts(system) if devices > 1 else {}))
            self.calls.clear()
            out.write(json.dumps(line) + "\n")  # in one piece: ranks share the stream
            out.flush()

    class CpuTrainer(pl.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.update(accelerator="cpu", devices=devices)
            if devices > 1:
                kwargs["strategy"] = "ddp_find_unused_parameters_true"
            kwargs["callbacks"] = [*kwargs.get("callbacks", []), Recorder()]
            super().__init__(*args, **kwargs)

    pl.Trainer = CpuTrainer


def _count_calls(guidance: Any, calls: list[str]) -> None:
    """Has each call of a guidance put the name of its class into `calls`."""
    kind = type(guidance)
    if "counted" in vars(kind):
        return

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kind.__name__)
        return kind.__call__(self, *args, **kwargs)

    guidance.__class__ = type(kind.__name__, (kind,), {"__call__": call, "counted": True})


if __name__ == "__main__":
    torch.set_num_threads(1)
    places, count = list(map(Path, [*sys.argv[1:3], sys.argv[4]])), int(sys.argv[3])
    raise SystemExit(explained(lambda: train(places[0], places[1], count, places[2], sys.argv[5:])))
