"""What the extension's tests share: the host double with the extension loaded into it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import host_double as double


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """threestudio's double; `modules` has the extension's classes by name."""
    return double.install(monkeypatch)


@pytest.fixture
def rgb() -> Tensor:
    """Two renders (2, 16, 16, 3)."""
    return torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
