"""Score distillation on core and a teacher, the one implementation for every host."""

from __future__ import annotations

from carv_3d.guidance.options import GuidanceOptions
from carv_3d.guidance.sds import GuidanceOutput, SDSGuidance

__all__ = ["GuidanceOptions", "GuidanceOutput", "SDSGuidance"]
