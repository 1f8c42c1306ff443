"""Tests inside a real threestudio. They are collected only where CARV_THREESTUDIO names a checkout.

benchmarks/real_host.sh CHECKOUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cpu_host

CHECKOUT = os.environ.get("CARV_THREESTUDIO", "")
collect_ignore_glob = [] if CHECKOUT else ["test_*.py"]
if not all(name in os.environ for name in ("CARV_THREESTUDIO_MVDREAM", "CARV_MVDREAM")):
    collect_ignore_glob.append("test_mvdream.py")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the checkout; fails where it is none."""
    folder = Path(CHECKOUT).resolve()
    assert (folder / "launch.py").is_file(), f"CARV_THREESTUDIO is {CHECKOUT}, which holds no launch.py"
    return folder


@pytest.fixture(scope="session")
def threestudio(checkout: Path) -> Any:
    """The package itself with the extension loaded, on the CPU."""
    host = cpu_host.enter(checkout)
    cpu_host.load_extension()
    return host
