"""Tables of noise schedules: betas, abar, EDM's and flow matching's sigmas, as diffusers makes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import described
from carv_3d.errors import CarvError, shown

MOST_TIMESTEPS = 10**6
LARGEST = 1e15  # of sigmas and shifts, whose squares and products float32 must hold; the least is its inverse


def named_betas(name: str, T: int, start: float, end: float) -> Tensor:
    """(T,) betas as diffusers makes them. Raises CarvError for a name that it does not have."""
    if name == "linear":
        return torch.linspace(start, end, T, dtype=torch.float32)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float32) ** 2
    if name == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, T)) * (end - start) + start
    if name == "squaredcos_cap_v2":  # arXiv 2102.09672
        bar = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
        return torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)], dtype=torch.float32)
    raise CarvError(
        f"beta_schedule is {shown(name)}; it must be one of linear, scaled_linear, sigmoid, squaredcos_cap_v2. "
        "Any other schedule can be given as betas, to NoiseSchedule.from_betas."
    )


def zero_snr(betas: Tensor) -> Tensor:
    """Betas whose last abar is 0 (arXiv 2305.08891, algorithm 1): sqrt(abar) shifted and scaled."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def checked_table(name: str, value: Any) -> Tensor:
    """(T,) numbers in [0, 1] as a tensor of float32 or float64 of its own; CarvError for anything else."""
    if hasattr(value, "alphas_cumprod") or hasattr(value, "scheduler"):
        raise CarvError(
            f"{name} is a {type(value).__name__}; for a scheduler use NoiseSchedule.from_diffusers(scheduler)."
        )
    if isinstance(value, Mapping):
        raise CarvError(f"{name} is a mapping; for a scheduler's config use NoiseSchedule.from_config(config).")
    try:
        if not isinstance(value, Tensor):
            value = value.copy() if hasattr(value, "strides") else value  # torch takes no array that runs backwards
            value = torch.as_tensor(value, dtype=None if hasattr(value, "dtype") else torch.float64)
        dense = value.layout == torch.strided
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise CarvError(f"{name} is a {kind}; it must be a tensor, an array or a list of (T,) numbers.") from error
    if value.is_meta:
        raise CarvError(f"{name} is without data, as all that is made on the device meta; make it on the CPU.")
    if value.dim() != 1 or len(value) < 1 or not value.is_floating_point() or not dense:
        raise CarvError(
            f"{name} has shape {tuple(value.shape)} and type {value.dtype}{'' if dense else ', not a dense table'}; "
            "a noise schedule needs one row of floating-point numbers, one for each timestep."
        )
    value = value.detach()
    if bool(value.isnan().any()):
        raise CarvError(f"{name} leaves [0, 1]: it holds NaN.")
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise CarvError(f"{name} leaves [0, 1]: it goes from {float(value.min()):.4g} to {float(value.max()):.4g}.")
    # a copy: what the caller writes to the table later changes no schedule
    return value.clone() if value.dtype in (torch.float32, torch.float64) else value.float()


def check_falls(abar: Tensor) -> None:
    """Raises CarvError unless abar falls; betas and 1 - beta are known by how they run."""
    T, first, last = len(abar), float(abar[0]), float(abar[-1])
    if T > 1 and (bool((abar.diff() > 1e-6).any()) or not last < first):
        raise CarvError(
            f"alphas_cumprod goes from {first:.4g} to {last:.4g} and rises on the way; abar_t must fall with t. "
            "For betas use NoiseSchedule.from_betas(betas); a table from noise to data must be turned round."
        )
    # 1 - beta stays near 1, and takes smaller steps than its distance from 1
    if T >= 100 and float(abar[T // 2]) > 0.95 and first - float(abar[1]) < 0.5 * (1 - first):
        raise CarvError(
            f"alphas_cumprod is still {float(abar[T // 2]):.4g} half way, so these are 1 - beta_t, not their running "
            "product; use NoiseSchedule.from_betas(betas)."
        )


def entries_at(table: Tensor, t: Tensor) -> Tensor:
    """The table's entries at timesteps t, of t's shape; CarvError where t is none. Nothing waits for a device."""
    try:
        if t.is_meta:  # index_select would give what happens to lie in memory
            raise TypeError("t is without data")
        return table.index_select(0, t.reshape(-1)).view(t.shape)  # unlike table[t], takes no negative t and no mask
    except (TypeError, AttributeError, LookupError, RuntimeError) as error:
        return explained_entries(table, t, error)


def explained_entries(table: Tensor, t: Any, error: Exception) -> Tensor:
    """The entries of a table that could not be looked up at once: of timesteps on the CPU, the table on a GPU.

    Args:
        table: (T,), a value for each timestep.
        t: what was given as timesteps.
        error: what the look-up raised.

    Raises:
        CarvError: no tensor of timesteps of this schedule. On a GPU, one that lies outside is torch's own error.
    """
    problem = timesteps_problem(t, len(table), table.device)
    if problem:
        raise CarvError(f"t {problem}.") from error
    if t.device == table.device:
        raise error
    return table[t]


def timesteps_problem(t: Any, T: int, device: torch.device) -> str:
    """What keeps t from being timesteps of a schedule on a device, and the fix; "" for nothing."""
    if not isinstance(t, Tensor) or t.is_meta:
        return f"is {described(t)}; it must be a tensor of integer timesteps, as torch.tensor([500])"
    if t.dtype not in (torch.int64, torch.int32):
        return f"is of type {t.dtype}; timesteps are integers: t.long()"
    if t.device != device and t.device.type != "cpu":
        return f"is on {t.device} and the schedule on {device}; move the schedule: schedule.to('{t.device}')"
    if t.numel() and not 0 <= int(t.min()) <= int(t.max()) < T:
        return f"goes from {int(t.min())} to {int(t.max())}; the timesteps of this schedule are 0 to {T - 1}"
    return ""


def check_samples(t: Any, **given: Any) -> None:
    """CarvError unless these are tensors (N, ...) of one shape and place, and t has N timesteps, or one for all.

    Args:
        t: looked at for its number alone.
        **given: by the names that the caller knows.
    """
    (first, z), *others = given.items()
    for name, value in given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() == 0:
            what = described(value) if not isinstance(value, Tensor) else f"{tuple(value.shape)} of {value.dtype}"
            raise CarvError(f"{name} is {what}; it must be a tensor (N, ...) of floating-point numbers.")
    for name, value in others:
        if value.shape != z.shape:
            raise CarvError(f"{name} has shape {tuple(value.shape)} and {first} {tuple(z.shape)}; they must be equal.")
        if value.device != z.device:
            raise CarvError(f"{name} is on {value.device} and {first} on {z.device}: {name}.to({first}.device), say.")
    if isinstance(t, Tensor) and t.numel() != len(z) and 1 not in (t.numel(), len(z)):
        raise CarvError(f"t has shape {tuple(t.shape)} for {first} of {tuple(z.shape)}; it must be ({len(z)},).")


def check_agree(t: Tensor, **given: Tensor) -> None:
    """CarvError unless these are samples (N, ...) of one shape and place, and t has N timesteps, or one for all."""
    z, *others = given.values()
    floats = all(isinstance(x, Tensor) and x.is_floating_point() and x.dim() for x in given.values())
    alike = floats and all(x.shape == z.shape and x.device == z.device for x in others)
    if not alike or getattr(t, "numel", int)() not in (1, len(z)):
        check_samples(t, **given)


def check_size(name: str, value: float) -> float:
    """The number, which is above 0, and whose square float32 holds; else raises CarvError."""
    if not 1 / LARGEST <= value <= LARGEST:
        raise CarvError(f"{name} is {value}; it must be above 0, from {1 / LARGEST:g} to {LARGEST:g}.")
    return value


def flow_sigmas(T: int, shift: float = 1.0) -> Tensor:
    """(T,) rising sigmas of flow matching: s = 1/T .. 1, then shift s / (1 + (shift - 1) s). Raises CarvError."""
    if not 1 <= T <= MOST_TIMESTEPS or not 1 / LARGEST <= shift <= LARGEST:
        raise CarvError(
            f"a flow schedule has T = {T} and shift = {shift}; T must be at least 1 and at most {MOST_TIMESTEPS:,}, "
            f"the shift above 0, from {1 / LARGEST:g} to {LARGEST:g}."
        )
    s = torch.linspace(1, T, T, dtype=torch.float32) / T
    return shift * s / (1 + (shift - 1) * s)


def edm_sigmas(T: int, sigma_min: float, sigma_max: float, rho: float = 7.0, spacing: str = "karras") -> Tensor:
    """(T,) rising sigmas from sigma_min to sigma_max (arXiv 2206.00364, equation 5). Raises CarvError."""
    ordered = 1 / LARGEST <= sigma_min < sigma_max <= LARGEST
    if not 2 <= T <= MOST_TIMESTEPS or not ordered or not 0.1 <= rho <= LARGEST:
        raise CarvError(
            f"an EDM schedule has T = {T}, sigma_min = {sigma_min}, sigma_max = {sigma_max} and rho = {rho}; it needs "
            f"T of at least 2 and at most {MOST_TIMESTEPS:,}, 0 < sigma_min < sigma_max, and rho above 0, "
            f"none below {1 / LARGEST:g} (rho 0.1) or above {LARGEST:g}."
        )
    ramp = torch.linspace(0, 1, T, dtype=torch.float64)
    if spacing == "karras":
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return ((low + ramp * (high - low)) ** rho).float()
    if spacing == "exponential":
        return (math.log(sigma_min) + ramp * (math.log(sigma_max) - math.log(sigma_min))).exp().float()
    raise CarvError(f"an EDM schedule's spacing is {spacing!r}; it must be karras or exponential.")
