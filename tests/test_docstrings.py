"""Public docstrings name their arguments, as CONTRIBUTING.md asks; ruff's D417 then checks that none is missing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import carv_3d
import carv_3d.core

ROOT = Path(carv_3d.__file__).parent
PACKAGES = ("core", "objectives", "guidance", "teachers", "attribution/scores.py", "attribution/features.py")
ONE_SIGNATURE = ROOT / "objectives" / "residuals.py"  # its module says once what all of them take
NAMES = sorted({*carv_3d.__all__, *carv_3d.core.__all__} - {"__version__"})


def functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions and methods by name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
            yield owner + node.name, node


@pytest.mark.parametrize("package", PACKAGES)
def test_a_docstring_of_several_lines_has_its_sections(package: str) -> None:
    place, bare = ROOT / package, []
    for path in sorted(place.glob("*.py")) if place.is_dir() else [place]:
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            doc, a = ast.get_docstring(node) or "", node.args
            count = sum(x.arg not in ("self", "cls") for x in (*a.posonlyargs, *a.args, *a.kwonlyargs))
            if "\n" in doc and count > 1 and "Args:\n" not in doc and path != ONE_SIGNATURE:
                bare.append(f"{path.name}: {name} has no Args:")
            if "\n" in doc and "Raises CarvError" in doc:
                bare.append(f"{path.name}: {name} has no Raises: section")
    assert not bare, "\n".join(bare)


def called(name: str) -> list[tuple[str, Callable[..., object]]]:
    """The function itself, or the public methods of a class."""
    value = getattr(carv_3d, name, None) or getattr(carv_3d.core, name)
    if not inspect.isclass(value):
        return [(name, value)]
    return [
        (f"{name}.{method}", getattr(value, method))
        for method in vars(value)
        if (method == "__call__" or not method.startswith("_")) and inspect.isroutine(getattr(value, method))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_package_exports_names_its_arguments(name: str) -> None:
    for title, function in called(name):
        arguments = [p for p in inspect.signature(function).parameters if p != "self"]
        assert len(arguments) < 2 or "Args:\n" in inspect.cleandoc(function.__doc__ or ""), f"{title}{arguments}"
