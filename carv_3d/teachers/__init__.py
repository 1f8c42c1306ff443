"""Teachers: frozen diffusion models that predict noise, and how they are loaded."""

from __future__ import annotations
