"""LoRA adapters from files, added to a model's weights: W + scale alpha / rank (up down), arXiv 2106.09685."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carv_3d.errors import CarvError, first_line, shown
from carv_3d.io.files import expanded
from carv_3d.io.structured import conforms, parse_json
from carv_3d.io.tensor_files import check_finite, load_tensors

log = logging.getLogger(__name__)

FIX = "name a LoRA of this model as loras: [FILE.safetensors:SCALE]."
ENDINGS = (  # of PEFT, of diffusers before it, and of its attention processors
    (re.compile(r"\.lora_([AB])(?:\.default)?\.weight$"), ""),
    (re.compile(r"\.lora(?:_linear_layer)?\.(down|up)\.weight$"), ""),
    (re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight$"), "to_"),
)
TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Adapter(NamedTuple):
    """The two matrices of one layer, and what their product is multiplied by."""

    down: Tensor
    up: Tensor
    factor: float


def read_lora(text: str) -> tuple[Path, float]:
    """The file and the scale of "FILE" or "FILE:SCALE". Raises CarvError unless it is a .safetensors file."""
    name, _, number = text.rpartition(":")
    try:
        path, scale = (expanded(name), float(number)) if name else (expanded(text), 1.0)
    except ValueError:
        path, scale = expanded(text), 1.0
    if not math.isfinite(scale):
        raise CarvError(f"the scale of the LoRA {text} is not finite; {FIX}")
    if not path.is_file() or path.suffix != ".safetensors":
        raise CarvError(f"{path} is no .safetensors file, so no LoRA is read from it; {FIX}")
    return path, scale


def add_loras(parts: dict[str, Any], loras: Sequence[str], pipeline: str) -> None:
    """Changes the weights of loaded parts, in place.

    Args:
        parts: modules by name; those of text encoders may be None, and their layers are then left out with a warning.
        loras: "FILE" or "FILE:SCALE" of each, in PEFT's, diffusers' or kohya's names.
        pipeline: the class in diffusers that knows these names.

    Raises:
        CarvError: a file that is no LoRA, or one of another model.
    """
    layers = {part: dict(m.named_modules()) for part, m in parts.items() if isinstance(m, nn.Module)}
    for text in loras:
        path, scale = read_lora(text)
        adapters = read_adapters(path, pipeline, parts)
        unknown = sorted({part for part, _ in adapters if part not in parts})
        if unknown:
            raise CarvError(f"{path} is for {', '.join(unknown[:3])}, and the model has {', '.join(layers)}; {FIX}")
        absent = sorted({part for part, _ in adapters if parts.get(part) is None})
        if absent:
            log.warning("the layers of %s for %s are left out: these were not loaded.", path, ", ".join(absent))
        for (part, layer), adapter in adapters.items():
            if part not in absent:
                _add(layers[part], layer, adapter, scale, f"{path}: {part}.{layer}")


def read_adapters(path: Path, pipeline: str, parts: Mapping[str, Any]) -> dict[tuple[str, str], Adapter]:
    """What a LoRA holds, by part and layer.

    Args:
        path: in PEFT's, diffusers' or kohya's names.
        pipeline: the class in diffusers that knows these names.
        parts: modules by name; a UNet among them says which of its layers kohya's names mean.

    Raises:
        CarvError: a file that is no LoRA.
    """
    import diffusers

    tensors = load_tensors(path, FIX)
    check_finite(tensors, str(path), FIX)
    reader = getattr(getattr(diffusers, pipeline, None), "lora_state_dict", None)
    if reader is None:
        raise CarvError(f"diffusers reads no LoRA for a {pipeline}: leave loras out.")
    known = {"unet_config": parts["unet"].config} if "unet" in parts else {}
    if "return_alphas" in inspect.signature(reader).parameters:
        known["return_alphas"] = True
    try:
        out = reader(dict(tensors), **known)
    except Exception as error:  # of the library's own kinds
        raise CarvError(f"{path} is not understood as a LoRA ({first_line(error)}); {FIX}") from error
    weights, alphas = (out, {}) if isinstance(out, dict) else (out[0], out[1] or {})
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    given: dict[tuple[str, str], float] = {}
    for key, value in weights.items():
        place = _place(key)
        if place is None:
            raise CarvError(f"{path} holds {key}, which is no matrix of a plain LoRA; {FIX}")
        part, layer, side = place
        pairs.setdefault((part, layer), {})[side] = value
        for name in (f"{key}.alpha", f"{part}.{layer}.alpha"):
            if name in alphas:
                given[part, layer] = float(alphas[name])
    settings = _settings(path)
    return {place: _adapter(path, place, pair, given.get(place), settings) for place, pair in pairs.items()}


def _place(key: str) -> tuple[str, str, str] | None:
    """(part, layer, "down" or "up") of a tensor's name."""
    part, _, rest = key.partition(".")
    for pattern, prefix in ENDINGS:
        match = pattern.search(rest)
        if match:
            side = {"A": "down", "B": "up"}.get(match[match.lastindex or 1], match[match.lastindex or 1])
            layer = rest[: match.start()]
            if prefix:
                name = prefix + match[1]
                name = TEXT_NAMES[name] if part.startswith("text_encoder") else name.replace("to_out", "to_out.0")
                layer = f"{layer}.{name}"
            return part, layer, side
    return None


def _settings(path: Path) -> dict[str, Any]:
    """What PEFT wrote next to the weights; {} where it wrote nothing."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    settings: dict[str, Any] = parse_json(text, f"what PEFT wrote in {path}", FIX)
    return settings


def _adapter(
    path: Path, place: tuple[str, str], pair: dict[str, Tensor], alpha: float | None, settings: dict[str, Any]
) -> Adapter:
    if set(pair) != {"down", "up"}:
        raise CarvError(f"{path} lacks a matrix of {'.'.join(place)}; {FIX}")
    down, up, part = pair["down"], pair["up"], place[0]
    rank = down.shape[0] if down.dim() > 1 else 0
    if not rank or up.dim() < 2 or up[0].numel() != rank or not all(x.is_floating_point() for x in pair.values()):
        shapes = " and ".join(f"{tuple(x.shape)} {x.dtype}" for x in (down, up))
        raise CarvError(f"{path}: {'.'.join(place)} is {shapes}, which are no two matrices of numbers of a rank; {FIX}")
    if settings.get(f"{part}.use_dora") or settings.get(f"{part}.alpha_pattern"):
        raise CarvError(f"{path} is of a kind (DoRA, or alphas by pattern) that is not added to weights; {FIX}")
    rooted = _setting(path, settings, f"{part}.use_rslora", bool, False)
    alpha = _setting(path, settings, f"{part}.lora_alpha", float, rank) if alpha is None else alpha
    return Adapter(down, up, alpha / (rank**0.5 if rooted else rank))


def _setting(path: Path, settings: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = settings.get(name, default)
    if not conforms(value, kind):
        due = "true or false" if kind is bool else "a finite number"
        raise CarvError(f"{path}: what PEFT wrote of {name} is {shown(value)}, and {due} is due; {FIX}")
    return value


@torch.no_grad()
def _add(layers: Mapping[str, nn.Module], layer: str, adapter: Adapter, scale: float, name: str) -> None:
    # CLIP's layers have the prefix or not, by the version of transformers; files were written by either
    names = (layer, layer.removeprefix("text_model."), f"text_model.{layer}")
    target: Any = next((layers[name] for name in names if name in layers), None)
    down, up = (x.to(torch.float32) for x in adapter[:2])
    product = (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])
    weight = getattr(target, "weight", None)
    if weight is None or weight.shape != product.shape:
        shape = "no such layer" if weight is None else f"a layer of {tuple(weight.shape)}"
        raise CarvError(f"{name} is {tuple(product.shape)}, and the model has {shape}; {FIX}")
    weight.copy_(weight.to(torch.float32) + scale * adapter.factor * product)
    if not torch.isfinite(weight).all():
        raise CarvError(f"{name} makes weights that are not finite, at a scale of {scale:g}; {FIX}")
