"""Writing one vertex-colored mesh as binary glTF 2.0.

trimesh's exporter was weighed. COLOR_0 is linear light and needs more than the eight bits that mesh libraries write.
And a mesh with vertex colors needs a material: glTF's default is fully metallic and looks black without an
environment.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["srgb_to_linear", "to_gltf_axes", "write_glb"]

FLOAT, UINT32 = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963

#: One scene of one mesh, whose vertices have positions, normals and colors (accessors 0 to 2); indices are accessor 3.
SCENE: dict[str, Any] = {
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0, "name": "object"}],
    "meshes": [
        {
            "name": "object",
            "primitives": [
                {"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3, "material": 0, "mode": 4}
            ],
        }
    ],
    "materials": [
        {
            "name": "rough",
            "pbrMetallicRoughness": {
                "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
                "metallicFactor": 0.0,
                "roughnessFactor": 1.0,
            },
        }
    ],
}


def srgb_to_linear(c: NDArray[Any]) -> NDArray[np.float64]:
    """Linear light from sRGB values in [0, 1], of any shape (IEC 61966-2-1)."""
    c = np.asarray(c, dtype=np.float64)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def to_gltf_axes(points: NDArray[Any]) -> NDArray[Any]:
    """From x front, y left, z up to glTF's z front, x left, y up; points (..., 3). A rotation."""
    return np.stack([points[..., 1], points[..., 2], points[..., 0]], axis=-1)


def write_glb(
    path: str | Path,
    vertices: NDArray[Any],
    faces: NDArray[Any],
    normals: NDArray[Any],
    colors: NDArray[Any],
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Write one mesh with a rough material that is not metallic.

    Args:
        path: the file.
        vertices: (V, 3), in metres and glTF axes.
        faces: (F, 3), counter-clockwise from outside.
        normals: (V, 3), of length 1.
        colors: (V, 3), sRGB in [0, 1].
        extras: plain JSON values for `asset.extras`.
    """
    arrays = [
        (np.asarray(vertices, "<f4"), FLOAT, "VEC3", ARRAY_BUFFER),
        (np.asarray(normals, "<f4"), FLOAT, "VEC3", ARRAY_BUFFER),
        (np.asarray(srgb_to_linear(colors), "<f4"), FLOAT, "VEC3", ARRAY_BUFFER),
        (np.asarray(faces, "<u4").reshape(-1), UINT32, "SCALAR", ELEMENT_ARRAY_BUFFER),
    ]
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    body = b""
    for array, component, kind, target in arrays:
        raw = array.tobytes()  # every item is a multiple of four bytes: aligned as glTF asks
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(raw), "target": target})
        accessors.append({"bufferView": len(views) - 1, "componentType": component, "type": kind, "count": len(array)})
        body += raw
    accessors[0]["min"] = arrays[0][0].min(axis=0).tolist()
    accessors[0]["max"] = arrays[0][0].max(axis=0).tolist()
    asset = {"version": "2.0", "generator": "carv_3d", **({"extras": dict(extras)} if extras else {})}
    document = {
        "asset": asset,
        **SCENE,
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    header = json.dumps(document, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 4)
    total = 12 + 8 + len(header) + 8 + len(body)
    with open(path, "wb") as out:
        out.write(struct.pack("<4sII", b"glTF", 2, total))
        out.write(struct.pack("<I4s", len(header), b"JSON") + header)
        out.write(struct.pack("<I4s", len(body), b"BIN\x00") + body)
