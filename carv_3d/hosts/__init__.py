"""Programs that carv_3d's guidance runs in: what is replaced in threestudio's configurations, and its launcher."""

from __future__ import annotations
