"""carv_3d: compute-aware variance reduction for expectations with diffusion teachers (arXiv 2605.21489)."""

from __future__ import annotations

__version__ = "0.1.0"
