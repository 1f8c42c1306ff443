"""What a test of several ranks records of each, and the mishaps that it gives to one of them.

CARV_TEST_MISHAP is WHAT:STEP, for the last rank: `nan`, no finite prediction at that step; `memory`, memory runs out
for more than one sample; `no-memory`, it runs out for any; `kill`, the process ends.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor

TIMESTEPS: list[Tensor] = []


def share_no_booleans(system: Any) -> None:
    """Called before the processes meet: torch 2.0's gloo cannot send booleans, which later ones can.

    They are nerfacc's occupancy grid, which the dense rendering of a CPU does not read.
    """
    if not torch.__version__.startswith("2.0."):
        return
    for module in system.modules():
        booleans = {name: x for name, x in module._buffers.items() if x is not None and x.dtype == torch.bool}
        for name, x in booleans.items():
            delattr(module, name)
            setattr(module, name, x)  # an attribute, no longer a buffer


def prepare(trainer: Any, system: Any) -> None:
    """Called before each step."""
    carv = system.guidance._carv
    carv = getattr(carv, "sds", carv)  # of variational score distillation
    if not hasattr(carv, "observed"):
        carv.observed = True
        _observe(carv)
    what, _, step = os.environ.get("CARV_TEST_MISHAP", "").partition(":")
    now = bool(what) and trainer.global_rank == trainer.world_size - 1 and trainer.global_step + 1 == int(step)
    carv.mishap = what if now else ""
    if carv.mishap == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def _observe(carv: Any) -> None:
    eps_hat = carv.teacher.eps_hat

    def observed(z: Tensor, t: Tensor, *rest: Any) -> Tensor:
        rows = len(z) // 2  # with and without the text
        if carv.mishap == "no-memory" or (carv.mishap == "memory" and rows > 1):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (for a test)")
        TIMESTEPS.append(t[:rows])
        return eps_hat(z, t, *rest) * (float("nan") if carv.mishap == "nan" else 1.0)

    carv.teacher.eps_hat = observed


def facts(system: Any) -> dict[str, Any]:
    """The timesteps of a batch, and a sum over the parameters, which differs where ranks have drifted apart.

    Systems that edit images do not call their guidance in every batch, and not on every rank: no timesteps then.
    """
    t = [step for drawn in TIMESTEPS for step in drawn.tolist()]
    TIMESTEPS.clear()
    total = sum(float(p.detach().double().abs().sum()) for p in system.parameters())
    return {"t": t, "parameters": total}
