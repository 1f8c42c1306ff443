"""What makes training on a CPU quicker and leaves what is trained alone: half-precision products where the processor
has them in hardware, and a compiled network where there is a C++ compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...errors import CarvError

PRECISIONS = ("auto", "bf16", "fp32")
ALIKE = 0.99  # least cosine; where a part was left without gradient it was 0.94


def choose_precision(name: str) -> str:
    """ "auto" is "bf16" where the processor multiplies bfloat16 in hardware, else "fp32"; CarvError for other names."""
    if name not in PRECISIONS:
        raise CarvError(f"--unet-precision is {name}: it is one of {', '.join(PRECISIONS)}.")
    return name if name != "auto" else "bf16" if _multiplies_bfloat16() else "fp32"


def _multiplies_bfloat16() -> bool:
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # absent from older torch
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def compile_in_place(module: nn.Module, gradient: Callable[[], Tensor], log: Callable[[str], None]) -> bool:
    """Compile ``module``; its weights and their names stay. The first step then takes a minute.

    ``gradient()`` is one flat gradient of the module's weights, the same at each call. False, and a word of why, where
    this machine cannot compile or the compiled module's gradient is another: that costs speed only.
    """
    try:
        expected = gradient()
        for part in module.modules():
            if type(part).__name__ == "Upsample2D":  # torch 2.13, bfloat16: compiled, no gradient came back through it
                part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]
        module.compile()
        likeness = torch.cosine_similarity(gradient().double(), expected.double(), dim=0).item()
    except Exception as error:  # no compiler, no headers of Python's, a Python too new for torch to compile, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    else:
        if likeness > ALIKE:
            return True
        reason = f"the compiled network's gradient has a cosine of {likeness:.3f} with its own"
    module._compiled_call_impl = None  # what module.compile() had set
    log(f"not compiled, so slower: {reason}")
    return False
