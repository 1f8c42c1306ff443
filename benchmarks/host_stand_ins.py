"""What lets other people's loops run on a CPU: CUDA's device becomes the CPU, packages that need CUDA get stand-ins.

`on_cpu` turns every "cuda" that PyTorch is given into "cpu". `stand_in` answers imports of absent packages with names
that may be imported and not called. `splatting` answers `diff_gaussian_rasterization` and `simple_knn` with a
rasterizer in PyTorch alone: the same image up to what their cut at three standard deviations leaves out, every Gaussian
at every pixel, so for hundreds of Gaussians and small images.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import math
import sys
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SH0 = 0.28209479177387814  # the spherical harmonic of degree 0


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0]
        args = tuple(_cpu(x) for x in args)
        return func(*args, **{name: _cpu(x) for name, x in (kwargs or {}).items()})


def _cpu(x: Any) -> Any:
    """`x`, or the CPU where it names CUDA."""
    is_cuda = (isinstance(x, str) and x.partition(":")[0] == "cuda") or (
        isinstance(x, torch.device) and x.type == "cuda"
    )
    return "cpu" if is_cuda else x


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self) -> None:
        """Nothing is timed."""

    def elapsed_time(self, _: Any) -> float:
        """No milliseconds."""
        return 0.0


def on_cpu() -> None:
    """From here on, in this process, "cuda" means the CPU."""
    _OnCpu().__enter__()
    cuda: Any = torch.cuda
    cuda.Event, cuda.synchronize, cuda.set_device = _Event, lambda *_: None, lambda *_: None


class _Nothing(type):
    """The class of names in stand-ins: they may be imported and subclassed, not used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{cls.__name__} is a stand-in: this needs the real package")


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012, a module's attribute

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for some packages, when a file below `folder` asks."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        self.folder, self.names = str(folder), names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        frame = sys._getframe(1)
        while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        ours = name.partition(".")[0] in self.names and frame.f_code.co_filename.startswith(self.folder)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def stand_in(folder: Path, absent: Collection[str], compiled: Collection[str] = ()) -> None:
    """Stand-ins for packages that files below `folder` import: `absent` where none is installed, `compiled` always."""
    sys.meta_path.insert(0, _Finder(folder, compiled))
    sys.meta_path.append(_Finder(folder, absent))


class Settings(NamedTuple):
    """`GaussianRasterizationSettings` of diff_gaussian_rasterization; matrices are for row vectors."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool


class Rasterizer(nn.Module):
    """`GaussianRasterizer`: 3D Gaussians to an image (arXiv 2308.04079, section 4), differentiable in all but `bg`."""

    def __init__(self, raster_settings: Settings) -> None:
        super().__init__()
        self.settings = raster_settings

    def forward(
        self, means3D: Tensor, means2D: Tensor, opacities: Tensor, shs: Tensor | None = None,
        colors_precomp: Tensor | None = None, scales: Tensor | None = None, rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """N Gaussians to image (3, H, W), radii (N,), depth and alpha (1, H, W); colors of degree 0 alone."""
        s = self.settings
        H, W = s.image_height, s.image_width
        assert cov3D_precomp is None
        assert scales is not None
        assert rotations is not None
        if shs is not None:
            colors_precomp = (SH0 * shs[:, 0] + 0.5).clamp_min(0)
        ones = means3D.new_ones(len(means3D), 1)
        view, clip = torch.cat([means3D, ones], 1) @ s.viewmatrix, torch.cat([means3D, ones], 1) @ s.projmatrix
        depth = view[:, 2]
        front = depth > 0.2
        ndc = clip[:, :2] / clip[:, 3:].clamp_min(1e-6) + means2D[:, :2]
        center = ((ndc + 1) * ndc.new_tensor([W, H]) - 1) / 2
        focal = (W / (2 * float(s.tanfovx)), H / (2 * float(s.tanfovy)))
        cov = _projected(scales * s.scale_modifier, rotations, view[:, :3], s.viewmatrix[:3, :3], focal)
        order = torch.where(front, depth, depth.new_tensor(math.inf)).argsort()
        y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
        off = torch.stack([x, y], -1).view(1, -1, 2) - center[order, None]  # (N, H W, 2)
        inverse = torch.linalg.inv(cov[order])
        a, b, c = inverse[:, 0, 0, None], inverse[:, 0, 1, None], inverse[:, 1, 1, None]
        power = -0.5 * (a * off[..., 0] ** 2 + c * off[..., 1] ** 2) - b * off[..., 0] * off[..., 1]
        alpha = (opacities[order] * front[order, None] * power.exp()).clamp_max(0.99)
        before = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])  # (N + 1, H W)
        weights = before[:-1] * alpha
        assert colors_precomp is not None
        image = weights.T @ colors_precomp[order] + before[-1][:, None] * s.bg
        radii = (3 * torch.linalg.eigvalsh(cov.detach())[:, -1].sqrt()).ceil().int() * front
        planes = [(weights * depth[order, None]).sum(0), weights.sum(0)]
        return image.T.view(3, H, W), radii, *(plane.view(1, H, W) for plane in planes)


def _projected(scales: Tensor, q: Tensor, view: Tensor, rotation: Tensor, focal: tuple[float, float]) -> Tensor:
    """Covariances on the screen (N, 2, 2), in pixels, of scales (N, 3) and quaternions (N, 4), real part first."""
    w, x, y, z = nn.functional.normalize(q).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    axes = torch.stack(rows, 1).view(-1, 3, 3) * scales[:, None]
    depth, zero = view[:, 2].clamp_min(0.2), torch.zeros_like(view[:, 2])
    jacobian = torch.stack(
        [focal[0] / depth, zero, -focal[0] * view[:, 0] / depth**2, zero, focal[1] / depth,
         -focal[1] * view[:, 1] / depth**2], 1,
    ).view(-1, 2, 3)  # fmt: skip
    half = jacobian @ rotation.T @ axes
    return half @ half.transpose(1, 2) + 0.3 * torch.eye(2)


def _nearest(points: Tensor) -> Tensor:
    """The mean squared distance of each point (N, 3) to its three nearest."""
    return torch.cdist(points, points).square().sort(1).values[:, 1:4].mean(1)


def splatting() -> None:
    """Puts the rasterizer where `diff_gaussian_rasterization` and `simple_knn._C` are imported from."""
    rasterizer, knn, compiled = (
        types.ModuleType(n) for n in ("diff_gaussian_rasterization", "simple_knn", "simple_knn._C")
    )
    vars(rasterizer).update(GaussianRasterizationSettings=Settings, GaussianRasterizer=Rasterizer)
    vars(compiled).update(distCUDA2=_nearest)
    vars(knn).update(_C=compiled, __path__=[])
    sys.modules.update({m.__name__: m for m in (rasterizer, knn, compiled)})
