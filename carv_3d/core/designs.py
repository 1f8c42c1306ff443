"""How the K draws of each render are laid out: independent, in strata, in antithetic pairs, and together.

Every u is uniform on [0, 1) and every eps standard normal when looked at alone, whatever the design: it
changes the variance and never the expectation (arXiv 2605.21489, "stratified inverse CDF").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from carv_3d.core.options import DesignOptions, check_draws
from carv_3d.errors import CarvError


@dataclass(frozen=True, kw_only=True)
class Design(DesignOptions):
    """A layout of draws. Raises CarvError for a name that does not exist.

    Attributes:
        stratify: "none", independent draws. "render", the K draws of a render in K strata; where that leaves one
            stratum (K = 1, or one pair), the strata lie over the renders of the step instead. "global", both: a render
            has one draw in each of its K strata, and each of these is split among all renders of the step, of all
            ranks, so that the R K draws lie in R K strata. Which render gets which part is drawn anew at every step:
            hosts order their cameras (threestudio stratifies azimuths along the batch), and a fixed place would tie
            timesteps to views.
        antithetic: draws 2j and 2j + 1 share t and use eps and -eps; K/2 strata.
    """

    @property
    def group_size(self) -> int:
        """How many neighboring draws share a timestep."""
        return 2 if self.antithetic else 1

    def check(self, num_draws: int) -> None:
        """Raises CarvError for a K that this design cannot lay out."""
        check_draws(num_draws, self.antithetic)

    def draw_u(
        self,
        R: int,
        K: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        rank: int = 0,
        world_size: int = 1,
        shared: torch.Generator | None = None,
    ) -> Tensor:
        """Uniform numbers for the timesteps' inverse CDF.

        Args:
            R: renders.
            K: draws of each.
            generator: on any device; the numbers are drawn there and moved. It must differ between ranks.
            device: where the numbers go; the generator's if None.
            rank: this process among those that stratify together, each with R renders.
            world_size: how many they are.
            shared: a generator in the same state on every rank, which deals the strata out; needed, and only used, for
                strata over more than one rank.

        Returns:
            (R, K) in [0, 1), equal within a pair; float64, or float32 where the device has no other.
        """
        if K < 1 or K % self.group_size:
            self.check(K)
        groups = K // self.group_size
        xi = rand((R, groups), generator, device)
        first = torch.arange(groups, device=xi.device, dtype=xi.dtype)
        if self.stratify == "none":
            u = xi
        elif self.stratify == "render" and groups > 1:
            u = (first + xi) / groups
        else:
            dealt = self._deal(R, groups, generator, shared, rank, world_size, xi)
            u = (first + (dealt + xi) / (R * world_size)) / groups
        u = u.clamp(max=1.0 - torch.finfo(u.dtype).eps)
        return u.repeat_interleave(self.group_size, dim=1)

    def draw_eps(
        self,
        R: int,
        K: int,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal noise; the two of a pair are each other's negative.

        Args:
            R: renders.
            K: draws for each.
            shape: of one render's latents.
            generator: on any device; torch's global one if None.
            device: of the noise.
            dtype: of the noise.

        Returns:
            (R, K, *shape).
        """
        if K < 1 or K % self.group_size:
            self.check(K)
        where = generator.device if generator is not None else device
        size = (R, K // self.group_size, *shape)
        eps = torch.randn(size, generator=generator, device=where, dtype=dtype)
        eps = eps if device is None else eps.to(device)
        return torch.stack([eps, -eps], dim=2).flatten(1, 2) if self.antithetic else eps

    @staticmethod
    def _deal(
        R: int,
        groups: int,
        generator: torch.Generator | None,
        shared: torch.Generator | None,
        rank: int,
        world_size: int,
        like: Tensor,
    ) -> Tensor:
        """(R, groups): in each column, this rank's part of a random order of the R world_size places."""
        if not 0 <= rank < world_size:
            raise CarvError(f"rank is {rank} of world_size {world_size}; it must be 0 .. world_size - 1.")
        if world_size > 1 and shared is None:
            raise CarvError(
                "strata over several ranks need `shared`, a torch.Generator in the same state on every rank."
            )
        order = rand((R * world_size, groups), shared if world_size > 1 else generator, like.device)
        return order.argsort(dim=0)[rank * R : (rank + 1) * R].to(like.dtype)


def real_dtype(device: torch.device | str | None) -> torch.dtype:
    """float64 where the device has it: a CDF over a thousand timesteps deserves it."""
    return torch.float32 if device is not None and torch.device(device).type == "mps" else torch.float64


def rand(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
    """Uniform on [0, 1), drawn where the generator lives and moved to `device`."""
    where = generator.device if generator is not None else device
    dtype = real_dtype(where)
    target = device if device is not None else where
    return torch.rand(shape, generator=generator, device=where, dtype=dtype).to(device=target, dtype=real_dtype(target))
