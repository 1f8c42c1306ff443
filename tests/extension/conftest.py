"""A real threestudio checkout, where the environment variable CARV_THREESTUDIO names one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import real_host

WANTED = "CARV_THREESTUDIO names no threestudio checkout, so what needs a real one was not tried"


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the checkout; skips where none is named, fails where a wrong one is."""
    named = os.environ.get("CARV_THREESTUDIO")
    if not named:
        pytest.skip(WANTED)
    folder = Path(named).resolve()
    assert (folder / "launch.py").is_file(), f"CARV_THREESTUDIO is {named}, which holds no launch.py"
    return folder


@pytest.fixture(scope="session")
def threestudio(checkout: Path) -> Any:
    """The package itself with the extension loaded, on the CPU."""
    host = real_host.enter(checkout)
    real_host.load_extension()
    return host
