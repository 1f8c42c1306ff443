"""The examples in the docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["report.charts", "compare.methods", "io.files", "runs.progress"])
def test_the_examples_hold(name: str) -> None:
    module = importlib.import_module(f"carv_3d.{name}")
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0
