"""Weights that were saved quantised, by bitsandbytes or another method: the libraries load them, on CUDA alone."""

from __future__ import annotations

from pathlib import Path

import torch

from carv_3d.errors import CarvError
from carv_3d.teachers.families import Family
from carv_3d.teachers.model_folder import QUANTISED, read_json

UNKNOWN = "an unknown method"


def quantized_parts(folder: Path, family: Family) -> dict[str, str]:
    """The parts of a model whose config.json says that their weights are quantised, with the method."""
    methods = {}
    for part in family.classes:
        file = folder / part / "config.json"
        said = read_json(file).get(QUANTISED) if file.is_file() else None
        if said:
            methods[part] = str(said.get("quant_method", UNKNOWN)) if isinstance(said, dict) else UNKNOWN
    return methods


def check_quantized(folder: Path, family: Family, device: torch.device, altered: bool = False) -> dict[str, str]:
    """`quantized_parts`, where they can be used.

    Args:
        folder: of the model.
        family: its.
        device: where it is to run.
        altered: whether weights are to be changed or moved about, by adapters or by CPU offload.

    Raises:
        CarvError: quantised weights on another device than CUDA, or ones that are to be altered.
    """
    methods = quantized_parts(folder, family)
    if not methods:
        return methods
    part, method = next(iter(methods.items()))
    what = f"the {part} of {folder} holds weights that {method} quantised"
    if device.type != "cuda":
        raise CarvError(
            f"{what}, and on {device.type} these are not run: name a folder with whole or half-precision weights, or "
            "use a GPU."
        )
    if altered:
        raise CarvError(
            f"{what}, to which no adapter is added and which cannot wait in the CPU's memory: leave loras and "
            "cpu_offload out, or name a folder with whole or half-precision weights."
        )
    return methods
