"""The phrase that a camera's position adds to a prompt: "a blue mug, back left view"."""

from __future__ import annotations

from carv_3d.errors import CarvError

__all__ = ["COARSE_PHRASES", "FINE_PHRASES", "shift_azimuth", "view_phrase"]

#: Eight sectors of 45 degrees by rising azimuth, the first centred on 0 (the camera on +x, which the
#: object faces). The object's left is +y, so the camera at azimuth 90 sees its left side.
FINE_PHRASES = (
    "front view",
    "front left view",
    "left view",
    "back left view",
    "back view",
    "back right view",
    "right view",
    "front right view",
)
OVERHEAD = "overhead view"
COARSE_PHRASES = ("front view", "side view", "back view", OVERHEAD)


def shift_azimuth(azimuth: float) -> float:
    """The same direction in [-180, 180), in degrees."""
    return (azimuth + 180.0) % 360.0 - 180.0


def view_phrase(
    elevation: float,
    azimuth: float,
    fine: bool = True,
    overhead_threshold: float = 60.0,
    front_threshold: float = 45.0,
    back_threshold: float = 45.0,
) -> str:
    """The phrase for a camera at `elevation`, `azimuth` (degrees).

    `fine=True`: one of `FINE_PHRASES` (a sector is half open: 22.5 already is "front left view") or
    "overhead view" above `overhead_threshold`.
    `fine=False`: threestudio's four with its thresholds and its strict comparisons; front within
    `front_threshold` of azimuth 0, back within `back_threshold` of 180, overhead before either.

    Raises:
        CarvError: an elevation outside [-90, 90].
    """
    if not -90.0 <= elevation <= 90.0:
        raise CarvError(f"an elevation of {elevation} degrees is not in [-90, 90].")
    if elevation > overhead_threshold:
        return OVERHEAD
    if fine:
        return FINE_PHRASES[int((azimuth + 22.5) % 360.0 // 45.0)]
    azimuth = shift_azimuth(azimuth)
    if azimuth > 180.0 - back_threshold or azimuth < -180.0 + back_threshold:
        return "back view"
    if -front_threshold < azimuth < front_threshold:
        return "front view"
    return "side view"
