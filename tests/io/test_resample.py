"""Images resized as by OpenCV, against what OpenCV gave (tests/extension/record_zero123.py)."""

from __future__ import annotations

import numpy as np
import pytest
import recorded_zero123 as zero123
from safetensors.torch import load_file

from carv_3d.io.resample import area_resized

TENSORS = load_file(zero123.TENSORS)


@pytest.mark.parametrize("size", zero123.AREAS)
def test_every_pixel_is_opencvs(size: tuple[int, int]) -> None:
    expected = TENSORS[f"area {size[0]} {size[1]}"].numpy()
    assert np.array_equal(area_resized(zero123.pixels(*size), 16), expected)


def test_a_whole_number_of_pixels_is_their_mean() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1) * 10
    assert area_resized(image, 1).item() == 40
