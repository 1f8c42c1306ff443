"""The scripts of examples/ do what they say, with fewer steps."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(p.stem for p in EXAMPLES.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_listed_and_tested() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tested = Path(__file__).read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f"`{name}.py`" in readme
        assert f'load("{name}")' in tested


def test_the_plain_loop_has_forty_lines_and_makes_its_image_red() -> None:
    tree = ast.parse((EXAMPLES / "own_loop.py").read_text(encoding="utf-8"))
    code = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    assert len(code) <= 40
    red, green, blue = load("own_loop").main(steps=20, K=2)[:, 20:44, 20:44].mean((1, 2)).tolist()
    assert red > green + 0.03  # it begins as one gray
    assert red > blue + 0.03


def test_splats_are_distilled_and_made_denser() -> None:
    module = load("splats_2d")
    torch.manual_seed(0)
    splats = module.Splats(20)
    image = splats(16)
    assert image.shape == (1, 16, 16, 3)
    image.sum().backward()
    most = int(splats.place.grad.norm(dim=1).argmax())
    size = splats.log_size[most].clone()
    splats.densify(4)
    assert len(splats.place) == 20
    torch.testing.assert_close(splats.log_size[16], size - 0.3)  # the one that is pulled most is split first
    before, after = (module.main(steps=n, count=40) for n in (0, 6))
    center = (slice(20, 44), slice(20, 44))
    assert (after - before)[center].mean((0, 1)).argmax() == 0  # towards red


def test_a_custom_proposal_keeps_the_mean_and_lowers_the_variance() -> None:
    made = load("custom_proposal").main()
    (uniform, variance), (bell, less) = made["uniform"], made["bell"]
    error = ((variance + less) / 32 / 400) ** 0.5  # of the difference of two means over 400 repeats and 32 elements
    assert abs(bell - uniform) < 4 * error * 32**0.5  # elements share their timesteps
    assert less < 0.6 * variance


def test_a_custom_objective_edits_what_the_texts_differ_in() -> None:
    edited, other = load("custom_objective").main(steps=40)
    assert edited > 0.6
    assert other == pytest.approx(0.1, abs=0.05)


def test_a_custom_teacher_gives_its_color() -> None:
    assert load("custom_teacher").main("a blue wall", steps=50) == pytest.approx([0.1, 0.2, 0.9], abs=0.06)


def test_distillation_learns_mean_and_spread() -> None:
    module = load("distill")
    mean, spread = module.main(steps=200)
    assert mean == pytest.approx(module.MEAN, abs=0.05)
    assert spread == pytest.approx(module.STD, abs=0.08)


def test_attribution_finds_the_items_of_the_querys_center() -> None:
    values, errors = load("attribute").main(items=16, training=200, num_draws=8)
    assert values[0::2].mean() > values[1::2].mean() + 2 * errors.mean() / 8**0.5
    assert bool((errors > 0).all())
