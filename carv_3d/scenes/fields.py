"""Radiance fields behind one small interface: points in, density and color out.

All of them answer inside a sphere of radius `radius` around the origin and start from the same blob of
density, `density_scale softplus(blob_scale (blob_radius - |x|))`, so that there is something to see at
step 0.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.options import Options, option
from carv_3d.errors import CarvError
from carv_3d.scenes.fused import FusedField, can_fuse, field_logits
from carv_3d.scenes.hash_layout import HashEncoding, HashLayout, encode_reference
from carv_3d.scenes.hashed import interpolate_hashed
from carv_3d.scenes.trilinear import interpolate, numba_available

__all__ = [
    "Field",
    "FieldOptions",
    "FusedHashField",
    "HashGridField",
    "TinyCudaNNField",
    "VoxelGridField",
    "fastest_field",
    "make_field",
]

FINEST = 2**20  # cells along an edge


@dataclass(frozen=True, kw_only=True)
class LatticeOptions(Options):
    """A regular lattice over the scene."""

    resolution: int = option(48, "Points along an edge.", least=2, most=1024)


@dataclass(frozen=True, kw_only=True)
class FieldOptions(LatticeOptions):
    """Sizes and the initial blob; the encoding's keys are threestudio's `pos_encoding_config`."""

    radius: float = option(1.08, "Radius of the sphere that holds the scene, in world units.", least=1e-6, most=1e6)
    density_scale: float = option(10.0, "What the density is multiplied by.", least=1e-6, most=1e6)
    blob_scale: float = option(12.0, "Density of the initial blob at its center.", least=0, most=1e6)
    blob_radius: float = option(
        0.52, "Radius of the initial blob; below 0 the field begins empty.", least=-1e6, most=1e6
    )
    n_levels: int = option(8, "Hash fields: levels of the grid.", least=1, most=32)
    n_features_per_level: int = option(2, "Hash fields: numbers at each entry.", least=1, most=16)
    log2_hashmap_size: int = option(17, "Hash fields: entries of a level, as a power of two.", least=1, most=28)
    base_resolution: int = option(16, "Hash fields: cells of the coarsest level along an edge.", least=2, most=4096)
    per_level_scale: float = option(
        1.4472692, "Hash fields: resolution of a level over the one before.", least=1, most=4
    )
    n_neurons: int = option(32, "Hash fields: width of the network.", least=1, most=4096)
    n_hidden_layers: int = option(1, "Hash fields: hidden layers of the network.", least=0, most=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level_resolutions[-1] > FINEST:
            raise CarvError(
                f"per_level_scale is {self.per_level_scale} and n_levels {self.n_levels}: the finest level would have "
                f"{self.level_resolutions[-1]:.3g} cells along an edge, and {FINEST:,} is the most; lower one."
            )

    @property
    def level_resolutions(self) -> list[int]:
        """Hash fields: cells along an edge of each level, the coarsest first."""
        return [math.floor(self.base_resolution * self.per_level_scale**level) for level in range(self.n_levels)]


def at_points(raw: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A field's `raw`, whose compiled loops check nothing: CarvError for what is no (N, 3) tensor of floats."""

    @functools.wraps(raw)
    def run(self: Any, x: Tensor) -> Tensor:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 2 and x.shape[1] == 3):
            given = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise CarvError(f"the points of a field are {given}; they must be a tensor (N, 3) of floats")
        return raw(self, x)

    return run


class Field(nn.Module, ABC):
    """Density and color in space.

    Points are (N, 3) in world units. Both results are differentiable in the parameters.

    Attributes:
        learning_rate: what Adam takes where the configuration names none.
    """

    learning_rate = 0.01

    def __init__(self, options: FieldOptions) -> None:
        super().__init__()
        self.options = options
        self.radius = options.radius

    @abstractmethod
    def raw(self, x: Tensor) -> Tensor:
        """Four logits (N, 4) at `x` (N, 3): density, then color."""

    def _with_blob(self, raw: Tensor, x: Tensor) -> Tensor:
        return torch.cat([raw[:, :1] + self.blob(x), raw[:, 1:]], dim=-1)

    def density_and_color(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N, 1), at least 0, per unit of length, and color (N, 3) in [0, 1] at `x` (N, 3)."""
        raw = self.raw(x)
        return self.options.density_scale * F.softplus(raw[:, :1]), torch.sigmoid(raw[:, 1:])

    def density(self, x: Tensor) -> Tensor:
        """Density (N, 1) at `x` (N, 3)."""
        return self.options.density_scale * F.softplus(self.raw(x)[:, :1])

    def normal(self, x: Tensor, eps: float | None = None) -> Tensor:
        """Unit normals (N, 3), `-grad density`, by central differences of half-width `eps`.

        Differentiable in the parameters. Zero where the density does not change.
        """
        eps = self.normal_eps if eps is None else eps
        offsets = eps * torch.cat([torch.eye(3), -torch.eye(3)]).to(x)
        around = self.density((x[:, None] + offsets).reshape(-1, 3)).view(-1, 6)
        return F.normalize((around[:, 3:] - around[:, :3]) / (2 * eps), dim=-1)

    @property
    def normal_eps(self) -> float:
        """Half-width of the differences in `normal`, in world units."""
        return 0.01 * self.radius

    def blob(self, x: Tensor) -> Tensor:
        """The initial density logit (N, 1) at `x` (N, 3): positive inside `blob_radius`."""
        o = self.options
        return o.blob_scale * (o.blob_radius - x.norm(dim=-1, keepdim=True))


class VoxelGridField(Field):
    """A dense grid of logits (D, D, D, 4), interpolated trilinearly, activated after the interpolation.

    `grid[i, j, k]` lies at `radius (2 (i, j, k)/(D - 1) - 1)`; channel 0 is density, 1 to 3 are red, green
    and blue. The fastest field on a CPU.
    """

    learning_rate = 0.06

    def __init__(self, options: FieldOptions | None = None) -> None:
        super().__init__(options or FieldOptions())
        D = self.options.resolution
        axis = torch.linspace(-self.radius, self.radius, D)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
        grid = torch.zeros(D, D, D, 4)
        grid[..., :1] = self.blob(nodes.view(-1, 3)).view(D, D, D, 1)
        self.grid = nn.Parameter(grid)

    @at_points
    def raw(self, x: Tensor) -> Tensor:
        """Trilinear between the nodes; differentiable in `grid`."""
        return interpolate(self.grid, x / self.radius)

    @property
    def normal_eps(self) -> float:
        """One voxel."""
        return 2 * self.radius / (self.options.resolution - 1)


def _head(n_in: int, options: FieldOptions) -> nn.Sequential:
    """A small MLP from features to four logits."""
    layers: list[nn.Module] = []
    for _ in range(options.n_hidden_layers):
        layers += [nn.Linear(n_in, options.n_neurons), nn.ReLU()]
        n_in = options.n_neurons
    return nn.Sequential(*layers, nn.Linear(n_in, 4))


class HashGridField(Field):
    """Multi-resolution grids and a small MLP, in torch alone (after Instant NGP).

    Levels that fit their table are dense; finer ones share its entries through a spatial hash.
    """

    def __init__(self, options: FieldOptions | None = None) -> None:
        super().__init__(options or FieldOptions())
        o = self.options
        self.table_size = 2**o.log2_hashmap_size
        self.resolutions = o.level_resolutions
        self.levels = nn.ParameterList()
        for res in self.resolutions:
            dense = res**3 <= self.table_size
            shape = (res, res, res) if dense else (self.table_size,)
            self.levels.append(nn.Parameter(1e-4 * (2 * torch.rand(*shape, o.n_features_per_level) - 1)))
        self.head = _head(o.n_levels * o.n_features_per_level, o)

    def encode(self, x: Tensor) -> Tensor:
        """Features (N, n_levels n_features_per_level) at `x` (N, 3)."""
        unit = x / self.radius
        out = []
        for table, res in zip(self.levels, self.resolutions):
            out.append(interpolate(table, unit) if table.dim() == 4 else interpolate_hashed(table, unit, res))
        return torch.cat(out, dim=-1)

    @at_points
    def raw(self, x: Tensor) -> Tensor:
        """The network on the features of all levels; differentiable in both."""
        raw = self.head(self.encode(x))
        return self._with_blob(raw, x)


class TinyCudaNNField(Field):
    """The hash grid of tinycudann with a torch MLP; CUDA only.

    Raises CarvError where tinycudann or CUDA is missing.
    """

    def __init__(self, options: FieldOptions | None = None) -> None:
        super().__init__(options or FieldOptions())
        if not torch.cuda.is_available():
            raise CarvError("the tcnn field needs a CUDA GPU and there is none; use the field 'voxel'.")
        try:
            import tinycudann  # type: ignore[import-not-found]
        except ImportError as error:
            raise CarvError(
                "the tcnn field needs tinycudann, which is not installed; install it with "
                "`pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch` "
                "or use the field 'voxel' or 'hash'."
            ) from error
        o = self.options
        config = {
            "otype": "HashGrid",
            "n_levels": o.n_levels,
            "n_features_per_level": o.n_features_per_level,
            "log2_hashmap_size": o.log2_hashmap_size,
            "base_resolution": o.base_resolution,
            "per_level_scale": o.per_level_scale,
        }
        self.encoding = tinycudann.Encoding(3, config, dtype=torch.float32)
        self.head = _head(o.n_levels * o.n_features_per_level, o)

    @at_points
    def raw(self, x: Tensor) -> Tensor:
        """As `HashGridField.raw`, by tiny-cuda-nn's kernels."""
        unit = (x / self.radius + 1) * 0.5  # tinycudann encodes the cube [0, 1]^3
        raw = self.head(self.encoding(unit).float())
        return self._with_blob(raw, x)


class FusedHashField(Field):
    """A hash grid and a small MLP that a CPU renders by compiled loops; its parameters lie as `TinyCudaNNField`'s do.

    The loops are for two features at each entry and one hidden layer, in float32 on the CPU. Anything else, and points
    that need a gradient, go through torch.

    Attributes:
        active_levels: the levels that are read; the others count as zero.
    """

    learning_rate = 0.04

    def __init__(self, options: FieldOptions | None = None) -> None:
        super().__init__(options or FieldOptions())
        o = self.options
        self.encoding = HashEncoding(
            HashLayout.from_options(
                o.n_levels, o.n_features_per_level, o.log2_hashmap_size, o.base_resolution, o.per_level_scale
            )
        )
        self.head = _head(o.n_levels * o.n_features_per_level, o)
        self.active_levels = o.n_levels

    def compiled(self) -> FusedField | None:
        """What the compiled loops read, or None where they do not serve this field."""
        o, p = self.options, dict(self.head.named_parameters())
        if o.n_hidden_layers != 1:
            return None
        scene = (self.radius, o.density_scale, o.blob_scale, o.blob_radius)
        tensors = (self.encoding.params, p["0.weight"], p["0.bias"], p["2.weight"], p["2.bias"])
        field = FusedField(self.encoding.layout, self.active_levels, scene, tensors)
        return field if can_fuse(field) else None

    @at_points
    def raw(self, x: Tensor) -> Tensor:
        """As `HashGridField.raw`; differentiable in `x` too."""
        field = self.compiled()
        if field is None or x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()):
            return self.raw_reference(x)
        return field_logits(field, x)

    def raw_reference(self, x: Tensor) -> Tensor:
        """`raw` in torch alone: slow, on every device and in every precision."""
        unit = (x / self.radius + 1) * 0.5
        raw = self.head(encode_reference(self.encoding.params, self.encoding.layout, unit, self.active_levels))
        return self._with_blob(raw, x)


FIELDS: dict[str, type[Field]] = {
    "voxel": VoxelGridField,
    "hash": HashGridField,
    "fused": FusedHashField,
    "tcnn": TinyCudaNNField,
}


def fastest_field(device: torch.device) -> tuple[str, str]:
    """What "auto" is on `device`: the field's name, and why it is that one."""
    if device.type == "cuda":
        has_tcnn = importlib.util.find_spec("tinycudann") is not None
        return ("tcnn", "CUDA and tinycudann are present") if has_tcnn else ("voxel", "tinycudann is not installed")
    if device.type == "cpu" and numba_available():
        return "fused", f"the device is {device}"
    return "voxel", "numba is not installed" if device.type == "cpu" else f"the device is {device}"


def make_field(
    name: str = "auto",
    options: FieldOptions | Mapping[str, Any] | None = None,
    log: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
) -> Field:
    """A field by its name.

    Args:
        name: "voxel", "hash", "fused", "tcnn", or "auto": a hash grid where it is fast, "tcnn" where `device` is CUDA
            and tinycudann is installed, "fused" where it is the CPU and numba is; the voxel grid otherwise.
        options: a `FieldOptions` or its values by name.
        log: is given the choice in a sentence.
        device: where its parameters are.

    Raises:
        CarvError: an unknown name or option.
    """
    if not isinstance(options, FieldOptions):
        options = FieldOptions(**(options or {}))
    device = torch.device(device)
    reason = "as asked"
    if name == "auto":
        name, reason = fastest_field(device)
    if name not in FIELDS:
        raise CarvError(f"unknown field {name!r}; there are: auto, {', '.join(FIELDS)}.")
    field = FIELDS[name](options).to(device)
    if log is not None:
        n = sum(p.numel() for p in field.parameters())
        log(f"field: {name} ({reason}), {n:,} parameters")
    return field
