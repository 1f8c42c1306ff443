"""What callers give the estimator: refused in one sentence where it cannot be meant."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from carv_3d.core.arguments import described, fits, raised_by_the_call
from carv_3d.core.estimate import Draws
from carv_3d.core.memory import amount, free_memory
from carv_3d.core.options import Options, unknown_option
from carv_3d.core.proposals import check_range, is_weighting
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line, shown

Cond = Tensor | Sequence[Tensor] | None
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MOST_AXES = 32  # of latents; torch has 64, and K needs one
COPIES = 3  # of the noise's size: itself, the residuals, and the residuals with their weights


@contextmanager
def whole_state(owner: str) -> Iterator[None]:
    """Within, something that is no saved state of the owner is one sentence."""
    try:
        yield
    except CarvError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        lacks = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise CarvError(f"this is no state of a {owner} ({lacks}); give what its state_dict() returned.") from error


def takes_whole_state(owner: str) -> Callable[[Callable[[Any, Any], None]], Callable[[Any, Any], None]]:
    """For `load_state_dict`: something that is no saved state of the owner is one sentence, and changes nothing."""

    def decorate(load: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        @functools.wraps(load)
        def whole(self: Any, state: Any) -> None:
            own = self.state_dict()
            try:
                with whole_state(owner):
                    load(self, state)
                    check_state(state)
            except CarvError:
                load(self, own)
                raise

        return whole

    return decorate


def check_state(state: Any, name: str = "the saved state") -> None:
    """CarvError where a number or tensor in it, however deep, is not finite, or a tensor holds no plain numbers."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            check_state(value, f"{name}'s {key}" if name == "the saved state" else f"{name}.{key}")
    elif isinstance(state, (list, tuple)):
        for value in state:
            check_state(value, name)
    elif isinstance(state, float) and not math.isfinite(state):
        raise CarvError(f"{name} holds {state}: start from a state without it.")
    elif isinstance(state, Tensor) and (state.is_complex() or state.is_meta or state.layout != torch.strided):
        kind = "without data" if state.is_meta else f"{state.dtype}, {state.layout}"
        raise CarvError(f"{name} has a tensor {kind}: start from a state without it.")
    elif isinstance(state, Tensor) and state.is_floating_point() and not bool(state.isfinite().all()):
        raise CarvError(f"{name} has numbers that are not finite: start from a state without it.")


def check_setup(schedule: Any, options: Any, kind: type[Options], meter: Any = None) -> None:
    """CarvError unless these are a NoiseSchedule, options of that kind, and a CostMeter or None."""
    if meter is not None and not hasattr(meter, "phase"):
        raise CarvError(f"meter is {described(meter)}; it must be a CostMeter, or None.")
    if not isinstance(schedule, NoiseSchedule):
        made = "NoiseSchedule.from_diffusers(scheduler)" if hasattr(schedule, "config") else "NoiseSchedule(...)"
        raise CarvError(f"schedule is {described(schedule)}; it must be a NoiseSchedule: {made}.")
    if not isinstance(options, kind):
        how = "**your_dict" if isinstance(options, Mapping) else "num_draws=8"
        raise CarvError(f"options is {described(options)}; it must be {kind.__name__}: {kind.__name__}({how}).")
    if schedule.continuous and getattr(options, "control_variate", False):
        raise CarvError(
            "control_variate learns at whole timesteps, and the schedule is a ContinuousSchedule: set it to false, or "
            "take a NoiseSchedule."
        )


def check_numbers(name: str, value: Any, due: str) -> None:
    """CarvError unless this is a dense tensor of floating-point numbers of 16 bits or more, with data.

    Args:
        name: of the argument; one that ends in s is several.
        value: as given.
        due: the shape, behind "a torch tensor", where it is none at all.
    """
    are, they = ("are", "they") if name.endswith("s") else ("is", "it")
    if not isinstance(value, Tensor):
        raise CarvError(f"{name} {are} {described(value)}; {they} must be a torch tensor {due}.")
    if not value.is_floating_point():
        raise CarvError(f"{name} {are} of type {value.dtype}; {they} must be floating-point numbers.")
    if value.element_size() < 2:  # torch computes nothing in them
        raise CarvError(f"{name} {are} of type {value.dtype}; {they} must have 16 bits or more: {name}.float(), say.")
    if value.layout != torch.strided or value.is_nested or value.is_meta:
        kind = "nested" if value.is_nested else "without data" if value.is_meta else str(value.layout)
        raise CarvError(f"{name} {are} {kind}; {they} must be a dense tensor: {name}.to_dense(), say.")


def check_call(function: Any, latents: Any, generator: Any) -> None:
    """CarvError unless these are a function, a batch of floating-point numbers, and a generator or None."""
    if not callable(function):
        raise CarvError(f"eps_hat is {described(function)}; it must be a function (z_t, t, ...) -> noise prediction.")
    check_numbers("latents", latents, "(R, ...), with autograd")
    if not 2 <= latents.dim() <= MOST_AXES or latents.numel() == 0:
        raise CarvError(f"latents have shape {tuple(latents.shape)}; they must be (R, ...), with one render at least.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise CarvError(
            f"generator is {described(generator)}; it must be a torch.Generator: torch.Generator().manual_seed(0)."
        )


def check_gradient(what: str, value: Any, advice: str) -> None:
    """CarvError for a tensor without gradient; `advice` says what to do."""
    if isinstance(value, Tensor) and not value.requires_grad:
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise CarvError(
                f"{what} no gradient of their own within vmap or jvp, which no loss is made for; give all renders at "
                "once, (R, ...), outside of it."
            )
        raise CarvError(f"{what} no gradient (requires_grad is False), so the loss would move nothing; {advice}.")


def check_keywords(owner: str, given: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """CarvError for a keyword that none of the functions takes, with the nearest that one of them takes."""
    known = [name for function in functions for name in inspect.signature(function).parameters]
    for name in given:
        if name not in known:
            raise unknown_option(owner, name, known, {})


def check_scale(latents: Tensor) -> None:
    """CarvError for images in 0..255. It waits for the device, once a step."""
    low, high = torch.stack(torch.aminmax(latents.detach())).tolist()
    if low >= 0 and 64 < high < math.inf:
        raise CarvError(
            f"latents go from {low:g} to {high:g}, as images in 0..255 do; give encoded images, or for a model of "
            "pixels images / 127.5 - 1."
        )


def conditions(cond: Any, R: int) -> tuple[Tensor, ...]:
    """The tensors that go with the renders. CarvError for something else, or another number of renders."""
    given = (cond,) if isinstance(cond, Tensor) else () if cond is None else cond
    if not isinstance(given, (tuple, list)) or not all(isinstance(c, Tensor) for c in given):
        raise CarvError(f"cond is {described(cond)}; it must be a tensor, or a tuple of tensors, of {R} embeddings.")
    if any(c.is_nested or c.layout != torch.strided for c in given):
        raise CarvError("cond has a sparse or nested tensor; each must be a dense one: its .to_dense(), say.")
    if any(c.shape[:1] != (R,) for c in given):
        raise CarvError(f"cond has shapes {[tuple(c.shape) for c in given]}; each must begin with {R}, the renders.")
    return tuple(given)


def check_prediction(what: str, value: Any, z_t: Tensor) -> None:
    """CarvError unless `what` returned a tensor of z_t's shape."""
    kind = type(value).__name__
    if not isinstance(value, Tensor):
        if isinstance(getattr(value, "sample", None), Tensor):
            advice = f"return its .sample instead of the whole {kind}"
        elif isinstance(value, Mapping):
            advice = f"return one of its values ({', '.join(map(str, list(value)[:4]))})"
        elif isinstance(value, (tuple, list)):
            advice = "return one of its items, the first perhaps"
        else:
            advice = "return the noise prediction"
        raise CarvError(f"{what} returned a {kind}, not a tensor: {advice}.")
    if not value.is_floating_point() or value.element_size() < 2:
        due = "floating-point numbers of 16 bits or more"
        raise CarvError(f"{what} returned numbers of type {value.dtype}; they must be {due}.")
    if value.layout != torch.strided:
        raise CarvError(f"{what} returned a {value.layout} tensor; it must be a dense one: return its .to_dense().")
    if value.device != z_t.device:
        raise CarvError(f"{what} returned a tensor on {value.device} for z_t on {z_t.device}; move the model there.")
    if value.shape != z_t.shape:
        raise CarvError(
            f"{what} returned {tuple(value.shape)} for z_t of {tuple(z_t.shape)}; the shapes must be equal "
            "(a model that predicts a variance too must leave it out)."
        )


def check_taken(what: str, names: str, samples: int, error: TypeError) -> None:
    """CarvError where a call of the caller's function failed since it does not take its arguments.

    Args:
        what: the function.
        names: of its first arguments, joined by commas.
        samples: how many tensors of cond follow.
        error: of the call.
    """
    if raised_by_the_call(error):
        given = f"{names} and {samples} tensors of cond" if samples else " and ".join(names.rsplit(", ", 1))
        raise CarvError(f"{what} is called with {given}, which it does not take: {error}.") from error


def check_draws_fit(draws: Any, latents: Tensor, schedule: NoiseSchedule) -> None:
    """CarvError unless explicit draws go with the latents and the schedule."""
    if not isinstance(draws, Draws):
        raise CarvError(f"draws are {described(draws)}; they must be Draws(t, eps, weights), or None.")
    given = {"t": draws.t, "eps": draws.eps, "weights": draws.weights}
    for name, value in given.items():
        if not fits(value, Tensor) and not (name == "weights" and value is None):
            raise CarvError(f"the draws' {name} is {described(value)}; it must be a torch tensor.")
    real = schedule.continuous and draws.t.is_floating_point() and bool(draws.t.isfinite().all())
    if not (real or draws.t.dtype in (torch.int64, torch.int32)) or draws.t.dim() != 2:
        due = "(R, K) of finite numbers" if schedule.continuous else "(R, K) of torch.int64"
        raise CarvError(f"the draws' t has type {draws.t.dtype} and shape {tuple(draws.t.shape)}; it must be {due}.")
    if not draws.eps.is_floating_point():
        raise CarvError(f"the draws' eps are of type {draws.eps.dtype}; they must be floating-point numbers.")
    if draws.weights is not None and not is_weighting(draws.weights):
        raise CarvError("the draws' weights are p/q: they must be finite real numbers, none below 0.")
    if isinstance(draws.group_size, bool) or not isinstance(draws.group_size, int) or draws.group_size < 1:
        raise CarvError(f"the draws' group_size is {shown(draws.group_size)}; it must be a whole number from 1 on.")
    R = latents.shape[0]
    expected = (R, draws.t.shape[-1])
    shapes = [draws.t.shape, draws.eps.shape[:2]]
    shapes += [] if draws.weights is None else [draws.weights.shape]
    if any(tuple(s) != expected for s in shapes) or draws.eps.shape[2:] != latents.shape[1:]:
        raise CarvError(
            f"the draws have t {tuple(draws.t.shape)}, eps {tuple(draws.eps.shape)}; latents of "
            f"{tuple(latents.shape)} need t and weights ({R}, K) and eps ({R}, K, ...)."
        )
    if draws.t.numel() == 0 or draws.t.shape[1] % draws.group_size:
        raise CarvError(f"{expected[1]} draws cannot be laid out in groups of {draws.group_size}.")
    check_range(math.floor(draws.t.min()), math.ceil(draws.t.max()), schedule.num_train_timesteps)


def draws_fit_memory(noise: int, device: torch.device) -> bool:
    """False where draws whose noise takes so many bytes surely need more memory than is free."""
    free = free_memory(device)
    return COPIES * noise <= (2**48 if free is None else free)


def too_many_draws(num_draws: int, latents: Tensor) -> str:
    """What to say where memory does not hold so many draws."""
    needed = num_draws * latents.numel() * latents.element_size()
    return (
        f"num_draws is {num_draws}, whose noise for {len(latents)} renders takes {amount(needed)}, {COPIES} times over "
        "with the residuals, more than there is memory for; lower it."
    )
