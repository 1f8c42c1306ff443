"""Faster training on a CPU: bfloat16 products where the processor has them, and a compiled network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from carv_3d.errors import first_line

PRECISIONS = ("auto", "bf16", "fp32")
ALIKE = 0.99  # least cosine of whole gradients
KEPT = 0.2  # least share of each weight's gradient; bfloat16's own rounding left 0.43 of one
NOTHING = 1e-5  # a share of the whole gradient that is rounding


def choose_precision(name: str) -> str:
    """The name itself; "auto" is "bf16" where the processor multiplies bfloat16 in hardware, else "fp32"."""
    return name if name != "auto" else "bf16" if _multiplies_bfloat16() else "fp32"


def _multiplies_bfloat16() -> bool:
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # of x86; absent from older torch
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def compile_in_place(module: nn.Module, gradient: Callable[[], list[Tensor]], log: Callable[[str], None]) -> bool:
    """Compile ``module``; its weights and their names stay. The first step then takes a minute.

    ``gradient()`` is the gradient of one same loss with respect to each weight. False, and a word of why, where this
    machine cannot compile or the compiled module's gradient is another: that costs speed only. A weight whose gradient
    is zero at this point cannot be checked.
    """
    try:
        expected = gradient()
        for part in module.modules():
            if type(part).__name__ == "Upsample2D":  # torch 2.13, bfloat16: compiled, no gradient came back through it
                part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]
        module.compile()
        reason = differs(gradient(), expected)
    except Exception as error:  # no compiler, no headers of Python's, a Python too new for torch to compile, ...
        reason = first_line(error)
    if reason:
        plain(module)
        log(f"not compiled, so slower: {reason}")
    return not reason


def loss_gradient(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    """The gradient of ``loss()`` with respect to each weight of ``model`` that has one."""
    model.zero_grad(set_to_none=True)
    loss().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def plain(module: nn.Module) -> None:
    """Undo :func:`compile_in_place`; in a copy as well, whose parts would else run those of the original."""
    module._compiled_call_impl = None  # what module.compile() had set
    for part in module.modules():
        part.__dict__.pop("forward", None)


def differs(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """What parts two gradients, each a tensor a weight; empty where rounding would."""
    joined, other = (torch.cat([g.flatten().double() for g in gradient]) for gradient in (actual, expected))
    likeness = torch.cosine_similarity(joined, other, dim=0).item()
    floor = NOTHING * float(other.norm())
    lost = sum(float(g.norm()) < KEPT * float(e.norm()) for g, e in zip(actual, expected) if float(e.norm()) > floor)
    if lost:
        return f"compiled, {lost} of {len(expected)} weights lose their gradient"
    return "" if likeness > ALIKE else f"the compiled network's gradient has a cosine of {likeness:.3f} with its own"
