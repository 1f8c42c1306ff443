"""A teacher that is known exactly: latents are a mixture of Gaussians, so the score is closed form.

    z ~ sum_m pi_m N(mu_m, s^2 I)   =>   eps_hat(z_t, t) = sigma_t (z_t - alpha_t sum_m r_m mu_m) / v_t,
    v_t = alpha_t^2 s^2 + sigma_t^2,     r = softmax_m(log pi_m - |z_t - alpha_t mu_m|^2 / 2 v_t)

Its expectation over eps is known too: closed form for one component, Gauss-Hermite quadrature over the span of the
means for several. What an estimator gives is held against that in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from carv_3d.core.arguments import checked, described, fits, refuse_text
from carv_3d.core.brief import Brief
from carv_3d.core.checks import check_numbers
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, shown
from carv_3d.teachers.inputs import check_images, check_latents, check_samples

NAMED = 0.98  # how much of the mixture a prompt's own component gets


class GaussianTeacher(Brief):
    """The protocol of `carv_3d.teachers.base.Teacher`, with a component of the mixture for each name.

    A text embedding (B, 1, M) is log pi: for "" all components are equally likely, for a prompt that holds
    a component's name that one gets 98 %.
    """

    brief = ("names", "std", "latent_channels", "latent_size")

    @checked
    def __init__(
        self,
        means: Tensor,
        std: float = 0.5,
        schedule: NoiseSchedule | None = None,
        names: Sequence[str] | None = None,
        image_size: int | None = None,
    ) -> None:
        """A teacher from its mixture.

        Args:
            means: (M, C, n, n), on any device, float32 or float64.
            std: s above.
            schedule: Stable Diffusion's by default.
            names: of the components, "0", "1", ... by default.
            image_size: a multiple of n; n by default.

        Raises:
            CarvError: shapes that do not fit, means that are not finite or of another type.
        """
        if means.dim() != 4 or means.shape[-1] != means.shape[-2] or 0 in means.shape:
            raise CarvError(f"means have shape {tuple(means.shape)}; they need (M, C, n, n).")
        if means.dtype not in (torch.float32, torch.float64):
            raise CarvError(f"means are of type {means.dtype}; they must be float32 or float64: means.float(), say.")
        check_numbers("means", means, "(M, C, n, n)")
        if not bool(means.isfinite().all()):
            raise CarvError("means hold NaN or infinity; they must be finite numbers.")
        if not 0 <= std < math.inf:
            raise CarvError(f"std is {shown(std)}; it must be a number of at least 0.")
        self.means = means.detach().clone()
        self.std = float(std)
        self.device, self.dtype = means.device, means.dtype
        self.schedule = (schedule or NoiseSchedule.scaled_linear()).to(self.device)
        self.latent_channels, self.latent_size = means.shape[1], means.shape[-1]
        if not fits(image_size, int | None):
            raise CarvError(f"image_size is {described(image_size)}; it must be a whole number, or None.")
        refuse_text("names", names)
        self.image_size = image_size or self.latent_size
        if image_size == 0 or self.image_size < 0 or self.image_size % self.latent_size:
            raise CarvError(f"image_size {image_size} is no multiple of the latents' {self.latent_size}.")
        self.names = [str(m) for m in range(len(means))] if names is None else list(names)
        if len(self.names) != len(means):
            raise CarvError(f"{len(self.names)} names were given for {len(means)} components.")
        again = next((name for m, name in enumerate(self.names) if name in self.names[:m]), None)
        if again is not None:
            raise CarvError(f"names has {shown(again)} twice; each component has a name of its own.")

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """The image's patches are averaged, and its three channels repeated to C.

        Args:
            images: (B, 3, H, W) in [0, 1], differentiable.
            generator: not used: this is linear, and there is no posterior.
            sample: not used.

        Returns:
            (B, C, n, n) in about [-1, 1].

        Raises:
            CarvError: no images (B, 3, H, W).
        """
        check_images(images)
        small = F.adaptive_avg_pool2d(images, self.latent_size) * 2 - 1
        return small[:, torch.arange(self.latent_channels, device=small.device) % 3]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`encode`, and a standard deviation of 0."""
        z = self.encode(images)
        return z, torch.zeros_like(z)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """The first channels (repeated to three) as blocks of color.

        Args:
            latents: (B, C, n, n), differentiable.
            clamp: cut to [0, 1].

        Returns:
            (B, 3, H, W).

        Raises:
            CarvError: no latents of C channels.
        """
        check_latents(latents, self.latent_channels)
        channels = torch.arange(3, device=latents.device) % self.latent_channels
        small = latents[:, channels] / 2 + 0.5
        large = F.interpolate(small, scale_factor=self.image_size // self.latent_size, mode="nearest")
        return large.clamp(0, 1) if clamp else large

    @checked
    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, 1, M), log pi. Raises CarvError for no prompt, or one that names no component."""
        refuse_text("prompts", prompts)
        if len(prompts) == 0:
            raise CarvError('prompts is an empty list; it must hold one text at least: [""] for none in particular.')
        M = len(self.means)
        rows = []
        for prompt in prompts:
            pi = torch.full((M,), 1.0 / M, dtype=self.dtype, device=self.device)
            named = [m for m, name in enumerate(self.names) if name in prompt.split()]
            if prompt and not named:
                raise CarvError(f"the prompt {prompt!r} names none of: {', '.join(self.names)}.")
            if named and len(named) < M:
                pi = torch.full_like(pi, (1 - NAMED) / (M - len(named)))
                pi[named] = NAMED / len(named)
            rows.append(pi.log())
        return torch.stack(rows)[:, None]

    def sample(self, text_emb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Exact samples of the mixtures.

        Args:
            text_emb: (N, 1, M), log pi.
            generator: on the teacher's device; torch's global one if None.

        Returns:
            (N, C, n, n).
        """
        m = torch.multinomial(text_emb[:, 0].exp(), 1, generator=generator)[:, 0]
        noise = torch.randn(self.means[m].shape, generator=generator, device=self.device, dtype=self.dtype)
        return self.means[m] + self.std * noise

    def eps_hat(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> Tensor:
        """The exact noise prediction, see the module.

        Args:
            z_t: (N, C, n, n), differentiable.
            t: (N,) integers.
            text_emb: (N, 1, M), log pi.

        Returns:
            (N, C, n, n).

        Raises:
            CarvError: tensors that do not go together, or with the means.
        """
        self._check(z_t, t, text_emb)
        alpha, sigma, v = (x.to(z_t.dtype) for x in self._at(t))
        means = self.means.to(z_t).flatten(1)
        flat = z_t.flatten(1)
        away = (flat[:, None] - alpha[:, None, None] * means).square().sum(-1)
        r = torch.softmax(text_emb[:, 0].to(z_t) - away / (2 * v[:, None]), dim=1)
        return (sigma / v)[:, None, None, None] * (z_t - (alpha[:, None] * (r @ means)).view_as(z_t))

    def expected_eps_hat(self, z: Tensor, t: Tensor, text_emb: Tensor, nodes: int = 40) -> Tensor:
        """E[eps_hat(alpha_t z + sigma_t eps, t)] over eps ~ N(0, I).

        The responsibilities depend on eps through the span of the means alone (M - 1 dimensions at most),
        so a product of Gauss-Hermite rules over it integrates them.

        Args:
            z: (N, C, n, n), clean.
            t: (N,) integers.
            text_emb: (N, 1, M), log pi.
            nodes: of the rule, in each dimension.

        Returns:
            (N, C, n, n).

        Raises:
            CarvError: as `eps_hat`, or the means span more than 3 dimensions.
        """
        self._check(z, t, text_emb)
        alpha, sigma, v = (x.to(z.dtype) for x in self._at(t))
        means = self.means.to(z).flatten(1)
        centre = means.mean(0)
        offsets = means - centre
        _, values, basis = torch.linalg.svd(offsets, full_matrices=False)
        basis = basis[values > 1e-9 * (1 + values.max())]
        if len(basis) > 3:
            raise CarvError(f"the means span {len(basis)} dimensions; the quadrature bears 3.")
        x, mass = _gauss_hermite(len(basis), nodes, z)
        # log pi_m - |z_t - alpha mu_m|^2 / 2v, without what is the same for all m
        towards = alpha[:, None] * ((z.flatten(1) - centre) @ offsets.T)
        towards = towards[:, None] + sigma[:, None, None] * (x @ (offsets @ basis.T).T)
        logits = alpha[:, None, None] * towards - (alpha**2)[:, None, None] / 2 * offsets.square().sum(1)
        r = torch.softmax(text_emb[:, 0].to(z)[:, None] + logits / v[:, None, None], dim=-1)
        mean = (mass[:, None] * r).sum(1) @ means
        return (sigma * alpha / v)[:, None, None, None] * (z - mean.view_as(z))

    def _check(self, z_t: Tensor, t: Tensor, text_emb: Tensor) -> None:
        check_samples(z_t, t, text_emb)
        C, n, M = self.latent_channels, self.latent_size, len(self.means)
        if z_t.shape[1:] != (C, n, n) or text_emb.shape[1:] != (1, M):
            shapes = f"z_t {tuple(z_t.shape)} and text_emb {tuple(text_emb.shape)}"
            raise CarvError(f"{shapes} are not this teacher's; they must be (N, {C}, {n}, {n}) and (N, 1, {M}).")

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha, sigma, (alpha * self.std) ** 2 + sigma**2


def _gauss_hermite(dims: int, nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(n^dims, dims) points and (n^dims,) masses of a standard normal, by Golub and Welsch's eigenvalues."""
    if dims == 0:
        return like.new_zeros(1, 0), like.new_ones(1)
    off = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    x, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    mass = vectors[0].square()
    grid = torch.stack(torch.meshgrid(*[x] * dims, indexing="ij"), -1).reshape(-1, dims)
    masses = torch.stack(torch.meshgrid(*[mass] * dims, indexing="ij"), -1).reshape(-1, dims).prod(-1)
    assert math.isclose(float(masses.sum()), 1.0, rel_tol=1e-9)
    return grid.to(like), masses.to(like)
