"""Settings that trade speed, or exactness, for memory."""

from __future__ import annotations

import logging
from typing import Any

import torch

from carv_3d.errors import CarvError, require

log = logging.getLogger(__name__)


def can_offload(device: torch.device) -> bool:
    """Whether parameters can wait in the CPU's memory; a note in the log where there is no GPU to spare."""
    if device.type != "cuda":
        log.info("sequential CPU offload is for CUDA; on %s there is nothing to offload.", device.type)
    return device.type == "cuda"


def offload_to_cpu(parts: list[Any], device: torch.device) -> None:
    """Let the parameters of `parts` visit `device` layer by layer. Raises CarvError without accelerate."""
    accelerate = require("accelerate", "distill", "sequential CPU offload")
    for part in parts:
        accelerate.cpu_offload(part, device, offload_buffers=len(list(part.parameters())) > 0)


def merge_tokens(unet: Any, arguments: dict[str, Any]) -> None:
    """Patch of tomesd on the UNet (arXiv 2303.17604). Raises CarvError without tomesd or for what it refuses."""
    try:
        import tomesd
    except ImportError as error:
        raise CarvError("token_merging needs tomesd: pip install tomesd, or set it to false.") from error
    try:
        tomesd.apply_patch(unet, **arguments)
    except TypeError as error:
        raise CarvError(f"token_merging_params {arguments} are refused by tomesd ({error}).") from error
