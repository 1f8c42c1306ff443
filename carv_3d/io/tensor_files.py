"""Files of tensors that may come from anywhere: safetensors and torch's own, read as data and never run as code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from carv_3d.errors import CarvError, first_line
from carv_3d.io.files import explain_os_error, open_file
from carv_3d.io.structured import parse_json

if TYPE_CHECKING:  # a header is read without torch
    from torch import Tensor

MAX_HEADER = 100_000_000  # bytes; the format's own limit
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
SCALES = re.compile(r"(^|[._])(scale_weight|weight_scale(_inv)?|scaled_fp8|SCB)$")
ZEROS = 0.25  # of the matrices of a model; layers that begin at zero are far fewer


class TensorHead(NamedTuple):
    """What a safetensors header says of a tensor: its type, such as "F32", and its shape."""

    dtype: str
    shape: tuple[int, ...]


def mapped_array(path: Path, mode: Literal["r", "r+"], fix: str) -> np.memmap[Any, Any]:
    """The array in a .npy file, memory-mapped.

    Raises:
        CarvError: no regular file, or none that numpy wrote whole; ends in `fix`.
    """
    open_file(path, fix).close()
    try:
        return np.lib.format.open_memmap(path, mode)
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    except (ValueError, EOFError, SyntaxError, TypeError, KeyError, TokenError) as error:  # of the header, as Python
        raise CarvError(f"{path} is damaged: it holds no whole array; {fix}") from error


def read_header(path: Path, fix: str) -> dict[str, TensorHead]:
    """The header of a safetensors file: each tensor by name. The tensors are not read.

    Raises:
        CarvError: the file is cut off, or its header is none; ends in `fix`.
    """
    with open_file(path, fix) as handle:
        size = os.fstat(handle.fileno()).st_size
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or 8 + length > size:
            raise CarvError(f"{path} is cut off at {size} bytes; {fix}")
        head = handle.read(min(length, MAX_HEADER + 1))
    name = f"the header of {path}"
    if length > MAX_HEADER:
        raise CarvError(f"{name} has {length} bytes, more than a safetensors file may have; {fix}")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        raise CarvError(f"{name} is not text in UTF-8; {fix}") from None
    entries = {k: v for k, v in parse_json(text, name, fix).items() if k != "__metadata__"}
    tensors = {key: _tensor_head(entry, f"{key[:80]!r} in {name}", fix) for key, entry in entries.items()}
    whole = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size < whole:
        raise CarvError(f"{path} is cut off: {size} bytes of {whole}; {fix}")
    return tensors


def check_plain(heads: Mapping[str, TensorHead], name: str, fix: str) -> None:
    """CarvError, ending in `fix`, for weights that are numbers only once a scale has been applied, or are none at all.

    Args:
        heads: as of `read_header`.
        name: of the file.
        fix: what to do.
    """
    for key, head in heads.items():
        if SCALES.search(key) or (key.endswith((".weight", ".bias")) and head.dtype not in FLOATS):
            raise CarvError(
                f"{name} holds {key} of type {head.dtype}, so its weights were quantised, and no such file is read: "
                f"take one in whole or half precision; {fix}"
            )


def _tensor_head(entry: Any, name: str, fix: str) -> TensorHead:
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise CarvError(f"{name} must have dtype (text), shape and data_offsets (lists of whole numbers); {fix}")
    return TensorHead(dtype, tuple(shape))


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def load_tensors(path: Path, fix: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a file of torch's, by name, on the CPU.

    Raises:
        CarvError: the file is damaged, or holds anything else than tensors by name; ends in `fix`.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            read_header(path, fix)
            return load_file(str(path))
        tensors = load_plain(path, fix)
    except CarvError:
        raise
    except Exception as error:  # the library's kinds: SafetensorError, RuntimeError and more
        raise CarvError(f"{path} is damaged ({first_line(error, 80)}); {fix}") from error
    from torch import Tensor

    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CarvError(f"{path} does not hold tensors by name; {fix}")
    return tensors


def same_tensor(key: str, *files: Path) -> bool:
    """Whether a tensor has the same type and values in two whole .safetensors files; only this tensor is read."""
    import torch
    from safetensors import safe_open

    values = []
    for file in files:
        with safe_open(str(file), framework="pt") as handle:
            values.append(handle.get_tensor(key))
    return values[0].dtype == values[1].dtype and torch.equal(*values)


def load_plain(path: Path, fix: str) -> Any:
    """What `torch.save` wrote, on the CPU: tensors, containers, numbers and text alone, so that no code is run.

    Raises what torch does for a damaged file, and CarvError as `open_file`.
    """
    import torch

    with open_file(path, fix) as handle:
        return torch.load(handle, map_location="cpu", weights_only=True)


class _Inert:
    """What stands in for any class of a checkpoint's: it can be made and holds nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_checkpoint(path: Path, fix: str) -> dict[str, Tensor]:
    """The weights of a .safetensors file, or of a checkpoint as Lightning writes it: its `state_dict` alone.

    Such a checkpoint names classes next to its weights (callbacks, settings). Empty objects take their place, so that
    no code but torch's own is run; that needs torch 2.6, and before it such a checkpoint is refused.

    Raises:
        CarvError: the file is damaged, or holds no tensors by name; ends in `fix`.
    """
    import torch

    if path.suffix == ".safetensors":
        return load_tensors(path, fix)
    try:
        if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
            with torch.serialization.safe_globals(_stand_ins(path, fix)):
                whole = load_plain(path, fix)
        else:
            whole = load_plain(path, fix)
    except (CarvError, MemoryError):
        raise
    except Exception as error:
        raise CarvError(f"{path} cannot be read as weights alone ({first_line(error, 80)}); {fix}") from error
    tensors = whole.get("state_dict", whole) if isinstance(whole, dict) else whole
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CarvError(f"{path} does not hold tensors by name; {fix}")
    return dict(tensors)


def _stand_ins(path: Path, fix: str) -> list[Any]:
    """A class without any content for each name in a checkpoint that torch would refuse."""
    import torch

    with open_file(path, fix) as handle:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(handle)  # type: ignore[arg-type]
        except ValueError:  # not in torch's zip format, which it reads all the same
            return []
    split = [name.rpartition(".") for name in names]
    return [type(name, (_Inert,), {"__module__": module}) for module, _, name in split]


def check_filled(tensors: Mapping[str, Tensor], name: str, fix: str) -> None:
    """CarvError, ending in `fix`, where many matrices of a model hold zeros alone, as of half a download."""
    matrices = [value for value in tensors.values() if value.dim() > 1 and value.numel() and not value.is_meta]
    # most are known by their first numbers
    empty = sum(not value.reshape(-1)[:64].any() and not value.any() for value in matrices)
    if empty > ZEROS * len(matrices):
        raise CarvError(f"{name}: {empty} of its {len(matrices)} matrices hold zeros alone; {fix}")


def check_finite(tensors: dict[str, Tensor], name: str, fix: str) -> None:
    """CarvError, ending in `fix`, where a floating-point tensor of `name` holds NaN or infinity."""
    import torch

    for key, value in tensors.items():
        # a sum is quick, and finite where all numbers are; it can overflow, so what it points at is looked at
        if value.is_floating_point() and value.numel() and not torch.isfinite(value.sum(dtype=torch.float32)):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise CarvError(f"{name}: {key} holds {bad} numbers that are NaN or infinite; {fix}")
