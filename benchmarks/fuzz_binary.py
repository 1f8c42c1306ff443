"""Strategies of hypothesis for binary files: weights, checkpoints, event files, images, arrays. As `fuzz_mutations`."""

from __future__ import annotations

import copy
import io
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import torch
from fuzz_guard import CANARY
from fuzz_mutations import ODD, Mutant, Raw, damaged, dumped, odd_tree
from hypothesis import strategies as st

NUMBERS = {k: v for k, v in ODD.items() if not isinstance(v, Raw)}


@st.composite
def safetensors_file(draw: Any, good: bytes) -> Mutant:
    """Weights: the header's length, its tree, a tensor that is not finite, or damaged bytes."""
    length = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + length]), bytearray(good[8 + length :])
    kind = draw(st.sampled_from(("length", "header", "header", "not finite", "bytes")))
    if kind == "bytes":
        mutant = draw(damaged(good))
        return mutant._replace(broken=mutant.broken or (mutant.note.startswith("cut") and mutant.content != good))
    if kind == "length":
        given = draw(st.sampled_from((0, 1, length - 1, length + 1, len(good), 2**31, 2**62, 2**64 - 1)))
        return Mutant(struct.pack("<Q", given) + good[8:], f"header of {given} bytes", True)
    if kind == "header":
        tree, note = draw(odd_tree(header))
        text = dumped(tree).encode("utf-8", "surrogatepass")
        return Mutant(struct.pack("<Q", len(text)) + text + bytes(data), f"header: {note}", not isinstance(tree, dict))
    floats = sorted(
        k for k, v in header.items() if k != "__metadata__" and v["dtype"] == "F32" and v["data_offsets"][1]
    )
    name = draw(st.sampled_from(floats))
    begin, end = header[name]["data_offsets"]
    at = begin + 4 * draw(st.integers(0, (end - begin) // 4 - 1))
    value = draw(st.sampled_from((math.nan, math.inf, -math.inf)))
    data[at : at + 4] = struct.pack("<f", value)
    return Mutant(good[: 8 + length] + bytes(data), f"{value} in {name}", True)


class Evil:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, (CANARY, "w")


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _tensor_paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, torch.Tensor):
        return [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for key, value in items for p in _tensor_paths(value, (*path, key))]


@st.composite
def checkpoint_file(draw: Any, good: bytes) -> Mutant:
    """A checkpoint: an odd tree, an odd tensor, code to run, or damaged bytes."""
    content = torch.load(io.BytesIO(good), weights_only=True)
    kind = draw(st.sampled_from(("tree", "tree", "tensor", "tensor", "known", "bytes")))
    if kind == "bytes":
        mutant = draw(damaged(good))
        return mutant._replace(broken=mutant.broken or (mutant.note.startswith("cut") and mutant.content != good))
    if kind == "tree":
        tree, note = draw(odd_tree(content, NUMBERS))
        return Mutant(_saved(tree), note, not isinstance(tree, dict))
    if kind == "known":
        known = {
            "code": Evil(),
            "code in the state": {**content, "state": {**content["state"], "step": Evil()}},
            "an empty state": {**content, "state": {}},
            "a newer format": {**content, "format": 99},
            "format text": {**content, "format": "x"},
            "a list": [content],
            "a negative step": _with_step(content, -1),
            "step NaN": _with_step(content, math.nan),
            "step 1.5": _with_step(content, 1.5),
            "step text": _with_step(content, "1"),
            "step 10^12": _with_step(content, 10**12),
        }
        note = draw(st.sampled_from(sorted(known)))
        return Mutant(_saved(known[note]), note, True)
    *way, last = draw(st.sampled_from(_tensor_paths(content)))
    parent = content
    for key in way:
        parent = parent[key]
    parent[last], note = draw(st.sampled_from(_odd_tensors(parent[last])))
    name = ".".join(map(str, (*way, last)))
    return Mutant(_saved(content), f"{name}: {note}", note == "NaN" and "generator" not in name)


def _with_step(content: Any, step: Any) -> Any:
    return {**content, "state": {**content["state"], "step": step}}


def _odd_tensors(x: torch.Tensor) -> list[tuple[Any, str]]:
    odd: list[tuple[Any, str]] = [
        (x.reshape(-1)[:0], "empty"),
        (x.double() if x.is_floating_point() else x.float(), "another dtype"),
        (x[None], "one axis more"),
        (x.reshape(-1)[:1], "one number"),
        (torch.zeros_like(x).to(torch.complex64), "complex"),
        (x.tolist() if x.numel() < 1000 else [], "a list"),
        (None, "None"),
        (x.to_sparse(), "sparse"),
    ]
    if x.is_floating_point() and x.numel():
        odd += [(torch.full_like(x, math.nan), "NaN")] * 3
    return odd


@st.composite
def events_file(draw: Any, good: bytes) -> Mutant:
    """TensorBoard's events: an odd step, time, tag, value; a record doubled or gone; or damaged bytes."""
    from tensorboard.compat.proto import event_pb2, summary_pb2

    events = []
    at = 0
    while at < len(good):
        size = struct.unpack("<Q", good[at : at + 8])[0]
        events.append(event_pb2.Event.FromString(good[at + 12 : at + 12 + size]))
        at += size + 16
    kind = draw(st.sampled_from(("step", "time", "tag", "value", "tensor", "order", "length", "bytes", "bytes")))
    i = draw(st.integers(1, len(events) - 1))
    event = events[i]
    note = f"{kind} of record {i}"
    if kind == "bytes":
        return draw(damaged(good))
    if kind == "length":
        size = draw(st.sampled_from((0, 2**31, 2**63)))
        return Mutant(good[: at // 2] + struct.pack("<Q", size) + b"\0" * 64, f"a record of {size} bytes")
    if kind == "step":
        event.step = draw(st.sampled_from((-1, -(2**63), 2**63 - 1, 0, 10**12)))
        note += f" {event.step}"
    elif kind == "time":
        event.wall_time = draw(st.sampled_from((math.nan, math.inf, -1.0, 0.0, 1e308)))
        note += f" {event.wall_time}"
    elif kind == "tag":
        event.summary.value[0].tag = draw(
            st.sampled_from(("", "<script>x</script>", "a" * 100_000, "\0", "step", "train/seconds", "../x"))
        )
        note += f" {event.summary.value[0].tag[:20]!r}"
    elif kind == "value":
        event.summary.value[0].simple_value = draw(st.sampled_from((math.nan, math.inf, -1e38, 0.0)))
    elif kind == "tensor":
        from tensorboard.util.tensor_util import make_tensor_proto

        value = draw(st.sampled_from((["a"], [1, 2], [], 3, [[1.5]], [True])))
        event.summary.value[0].CopyFrom(
            summary_pb2.Summary.Value(tag="train/loss", tensor=make_tensor_proto(np.array(value)))
        )
        note += f" {value}"
    else:
        events = events[::-1] if draw(st.booleans()) else events * 2
    return Mutant(b"".join(record(e) for e in events), note)


def record(event: Any) -> bytes:
    """An event as TensorBoard writes it."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data = event.SerializeToString()
    size = struct.pack("<Q", len(data))
    return size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@st.composite
def image_file(draw: Any, good: bytes) -> Mutant:
    """A PNG or JPEG: another mode, size or format, an odd header or chunk, or damaged bytes."""
    from PIL import Image

    kind = draw(st.sampled_from(("mode", "header", "chunk", "size", "bytes", "bytes")))
    if kind == "bytes":
        return draw(damaged(good))
    image = Image.open(io.BytesIO(good)).convert("RGB")
    if kind == "header" or kind == "chunk":
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        png = buffer.getvalue()
        if kind == "chunk":
            chunks = {
                "a text of 3 MiB": _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 3 * 2**20)),
                "a text of 300 MiB": _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 300 * 2**20, 1)[: 2**20]),
                "an odd EXIF": _chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
                "an odd profile": _chunk(b"iCCP", b"a\0\0xxxx"),
                "a chunk of 2 GiB": b"\x7f\xff\xff\xffIDAT",
                "an unknown chunk": _chunk(b"ABCD", b"x"),
                "no end": b"",
                "an odd palette": _chunk(b"PLTE", b"x"),
                "animation": _chunk(b"acTL", b"\xff" * 8),
            }
            note = draw(st.sampled_from(sorted(chunks)))
            tail = b"" if note == "no end" else png[33:]
            return Mutant(png[:33] + chunks[note] + tail, note, note == "no end")
        fields = draw(
            st.sampled_from(
                (
                    (0, 0, 8, 2),
                    (2**31 - 1, 2**31 - 1, 8, 2),
                    (100_000, 100_000, 8, 2),
                    (16, 16, 16, 2),
                    (16, 16, 3, 2),
                    (16, 16, 8, 9),
                    (16, 2**31 - 1, 1, 0),
                )
            )
        )
        broken = fields[0] != 16 or fields[1] != 16
        return Mutant(
            png[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", *fields, 0, 0, 0)) + png[33:], f"header {fields}", broken
        )
    modes = ("1", "L", "LA", "P", "PA", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB", "HSV")
    mode = draw(st.sampled_from(modes))
    size = draw(st.sampled_from(((16, 16), (1, 1), (16, 15), (1, 4000), (17, 16)))) if kind == "size" else image.size
    form = draw(st.sampled_from(("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "ICO", "PPM")))
    buffer = io.BytesIO()
    try:
        image.resize(size).convert("L" if mode.startswith("I;") else mode).convert(mode).save(buffer, form)
    except (OSError, ValueError, KeyError):  # a format without that mode
        image.resize(size).save(buffer, "PNG")
    return Mutant(buffer.getvalue(), f"{form} {mode} {size}")


@st.composite
def array_file(draw: Any, good: bytes) -> Mutant:
    """A .npy file: another shape, kind or header, objects to unpickle, or damaged bytes."""
    if draw(st.booleans()):
        return draw(damaged(good))
    array = np.load(io.BytesIO(good))
    arrays = {
        "objects": np.array([Evil()], dtype=object),
        "float64": array.astype(np.float64),
        "NaN": np.full_like(array, 255),
        "transposed": np.asfortranarray(array[..., None]),
        "empty": array[:0],
        "a number": np.float32(1),
        "text": np.array(["a"]),
    }
    note = draw(st.sampled_from(sorted(arrays)))
    buffer = io.BytesIO()
    np.save(buffer, copy.copy(arrays[note]), allow_pickle=True)
    return Mutant(buffer.getvalue(), note)
