"""Noise predictions under classifier-free guidance and Perp-Neg: the one place where scores are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from carv_3d.core.checks import check_prediction
from carv_3d.errors import CarvError, shown
from carv_3d.objectives.residuals import EpsHat

CfgConvention = Literal["standard", "threestudio"]
CFG_CONVENTIONS = get_args(CfgConvention)

EpsModel = Callable[..., Tensor]  # (z_t (N, C, h, w), t (N,), *condition (N, ...)) -> (N, C, h, w)


class Conditioning(NamedTuple):
    """What goes with each of N samples (or R renders); None where it is not used.

    Attributes:
        text: (N, L, D), the prompt's embeddings.
        uncond: (N, L, D), the empty prompt's, or those of what is to be avoided, as hosts give them.
        negative: (N, L, D), a negative prompt's next to `uncond`, for objectives that need it.
        perp_neg: (N, M, L, D), Perp-Neg's negatives.
        perp_neg_weights: (N, M), as threestudio gives them: already negative.
        trained_text: (N, L, D), the text of a trained score.
        camera: (N, W), its camera.
        images: (N, 3, H, W), the renders, for residuals in image space.
        image_cond: (N, C, H, W), an image that the teacher is given next to every text: `eps_hat(z_t, t, text, image)`.
        image_scale: (N,), the scale of that image; without one it is given to every prediction, and zeros to none.
    """

    text: Tensor
    uncond: Tensor
    negative: Tensor | None = None
    perp_neg: Tensor | None = None
    perp_neg_weights: Tensor | None = None
    trained_text: Tensor | None = None
    camera: Tensor | None = None
    images: Tensor | None = None
    image_cond: Tensor | None = None
    image_scale: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there, in order."""
        return tuple(x for x in self if x is not None)

    def filled(self, tensors: Sequence[Tensor]) -> Conditioning:
        """The same fields with other samples: `tensors` is laid out as `self.tensors`."""
        rest = iter(tensors)
        return Conditioning(*(None if x is None else next(rest) for x in self))  # type: ignore[arg-type]

    def scale(self, guidance_scale: float, convention: str = "standard") -> float:
        """The s of these samples, see `effective_scale`; under Perp-Neg it is the scale itself, as in threestudio."""
        return guidance_scale if self.perp_neg is not None else effective_scale(guidance_scale, convention)

    def samples(self, which: slice) -> Conditioning:
        """Of some of the samples alone."""
        return self.filled([x[which] if len(x) > 1 else x for x in self.tensors])

    def per_render(self, R: int) -> Conditioning:
        """The texts of R renders, from R or 1. Raises CarvError, with `SDSGuidance`'s names, for other shapes."""
        changed = {}
        for field, (name, dims) in TEXTS.items():
            x = getattr(self, field)
            if x is None:
                continue
            if not isinstance(x, Tensor):
                fix = "a tensor" if field.startswith("image") else "embeddings: teacher.text_embeddings([...])"
                raise CarvError(f"{name} is {shown(x)}; give {fix}.")
            if x.dim() != dims or x.shape[0] not in (1, R):
                raise CarvError(f"{name} has shape {tuple(x.shape)}; it needs {dims} axes and a batch of {R} (or 1).")
            if not x.is_floating_point():
                raise CarvError(f"{name} is a tensor of {x.dtype}; it must be of floating-point numbers.")
            if name.startswith("prompts") and 0 in x.shape:
                raise CarvError(
                    f"{name} has shape {tuple(x.shape)}, so it holds no tokens; each text needs one at least."
                )
            if name.startswith("prompts") and x.shape[1:] != self.text.shape[1:]:
                first = f"prompts_cond {tuple(self.text.shape)}"
                raise CarvError(f"{name} has shape {tuple(x.shape)} and {first}; they differ in the batch alone.")
            changed[field] = x if x.shape[0] == R else x.expand(R, *x.shape[1:])
        if self.perp_neg is not None and self.perp_neg_weights is not None:
            M, weights = self.perp_neg.shape[1], self.perp_neg_weights.shape[1]
            if weights != M:
                raise CarvError(f"Perp-Neg was given {M} negatives and {weights} weights; each negative needs one.")
        if self.image_scale is not None and self.image_cond is None:
            raise CarvError("image_scale is the scale of image_cond, which is absent: give both, or neither.")
        return self._replace(**changed)


TEXTS = {
    "text": ("prompts_cond", 3),
    "uncond": ("prompts_uncond", 3),
    "negative": ("prompts_negative", 3),
    "perp_neg": ("negatives", 4),
    "perp_neg_weights": ("the weights of negatives", 2),
    "image_cond": ("image_cond", 4),
    "image_scale": ("image_scale", 1),
}


def effective_scale(guidance_scale: float, convention: str) -> float:
    """The `s` in `uncond + s (text - uncond)`.

    "standard" takes the scale as it is. "threestudio" is `text + scale (text - uncond)`, what threestudio's
    stable-diffusion-guidance computes: the same thing at `scale + 1`.

    Args:
        guidance_scale: as the option has it.
        convention: one of `CFG_CONVENTIONS`.

    Raises:
        CarvError: any other name.
    """
    if convention not in CFG_CONVENTIONS:
        raise CarvError(f"cfg_convention is {convention!r}; it must be one of {', '.join(CFG_CONVENTIONS)}.")
    return float(guidance_scale) + (1.0 if convention == "threestudio" else 0.0)


def classifier_free(
    eps_hat: EpsModel, z_t: Tensor, t: Tensor, cond: Sequence[Tensor], uncond: Sequence[Tensor], s: float
) -> Tensor:
    """`uncond + s (cond - uncond)` (arXiv 2207.12598), in one batch of 2N samples, N where s is 0 or 1.

    Args:
        eps_hat: called as eps_hat(z_t, t, *condition).
        z_t: (N, C, h, w).
        t: (N,) integers.
        cond: the condition, tensors (N, ...).
        uncond: what takes its place, of the same shapes.
        s: the guidance scale.

    Returns:
        (N, C, h, w), in z_t's dtype.
    """
    if s in (0.0, 1.0):
        return _in_one_batch(eps_hat, z_t, t, [cond if s == 1.0 else uncond])[0]
    with_it, without = _in_one_batch(eps_hat, z_t, t, [cond, uncond])
    return without + s * (with_it - without)


def predict(eps_hat: EpsModel, z_t: Tensor, t: Tensor, cond: Conditioning, s: float, needs: Sequence[str]) -> EpsHat:
    """The predictions of a teacher that `needs` names, all in one batch; `guided` takes those that it is made of.

    Args:
        eps_hat: the teacher's, without guidance: eps_hat(z_t, t, text), or (z_t, t, text, image) with an `image_cond`.
        z_t: (N, C, h, w).
        t: (N,) integers.
        cond: of N samples. With Perp-Neg `guided` is `uncond + s (e + sum_m w_m perp(e_m, e))`, `e = text - uncond`
            and `e_m = perp_neg_m - uncond` (arXiv 2304.04968). With an image_scale s_I `(s_I - 1) (uncond - none)` is
            added, where none has zeros for the image: for two scales `none + s (text - uncond) + s_I (uncond - none)`
            (InstructPix2Pix, arXiv 2211.09800, equation 3).
        s: the guidance scale, see `effective_scale`.
        needs: fields of `EpsHat`, of text, uncond, guided and negative.

    Returns:
        Each (N, C, h, w) in z_t's dtype; what was not run is None.
    """
    names = set(needs)
    image = () if cond.image_cond is None else (cond.image_cond,)
    without_image: tuple[tuple[Tensor, ...], ...] = ()
    if cond.image_scale is not None and "guided" in needs:
        without_image = ((cond.uncond, *map(torch.zeros_like, image)),)
    if "guided" in needs:
        alone = cond.perp_neg is None and s in (0.0, 1.0) and not without_image
        names |= {"text" if s == 1.0 else "uncond"} if alone else {"text", "uncond"}
    texts = {name: (getattr(cond, name), *image) for name in ("text", "uncond", "negative") if name in names}
    perp_neg = () if cond.perp_neg is None or "guided" not in needs else cond.perp_neg.unbind(1)
    if perp_neg:  # recorded results have this memory format, and with it the kernels' last bits
        z_t = z_t.contiguous()
    out = _in_one_batch(eps_hat, z_t, t, [*texts.values(), *((x, *image) for x in perp_neg), *without_image])
    e = EpsHat(**dict(zip(texts, out)))
    if "guided" not in needs:
        return e
    if alone:
        return e._replace(guided=e.text if s == 1.0 else e.uncond)
    push = towards = e.text - e.uncond
    if cond.perp_neg_weights is not None:
        for weight, negative in zip(cond.perp_neg_weights.unbind(1), out[len(texts) :]):
            weight = _per_sample(weight, push)
            push = push + weight * perpendicular(negative - e.uncond, towards)
    guided = e.uncond + s * push
    if cond.image_scale is not None:
        guided = guided + _per_sample(cond.image_scale - 1, push) * (e.uncond - out[-1])
    return e._replace(guided=guided)


def _per_sample(factor: Tensor, x: Tensor) -> Tensor:
    """A factor (N,) in the shape and dtype in which it multiplies x (N, C, h, w)."""
    return factor.to(x).view(-1, *[1] * (x.dim() - 1))


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """The part of x at right angles to y, sample by sample: x - (<x, y> / <y, y>) y, both (N, C, h, w)."""
    dims = tuple(range(1, x.dim()))
    along = (x * y).sum(dims, keepdim=True) / (y * y).sum(dims, keepdim=True).clamp_min(1e-6)
    return x - along * y


def _in_one_batch(eps_hat: EpsModel, z_t: Tensor, t: Tensor, conds: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """eps_hat of the same z_t under each of n conditions, by one call."""
    n, condition = len(conds), conds[0]
    if n > 1:
        z_t, t = torch.cat([z_t] * n), torch.cat([t] * n)
        condition = [torch.cat(parts) for parts in zip(*conds)]
    else:  # copies, as above: a model may write to its arguments, and they are used again
        z_t, t, condition = z_t.clone(), t.clone(), [part.clone() for part in condition]
    out = eps_hat(z_t, t, *condition)
    if not isinstance(out, Tensor) or out.shape != z_t.shape:
        check_prediction("eps_hat", out, z_t)
    return out.chunk(n) if n > 1 else (out,)
