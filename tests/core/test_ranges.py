"""Every option that is a number says in its declaration where its range begins and where it ends."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import carv_3d
from carv_3d.core.kinds import Limits

NUMBERS = {"int", "float", "Annealed", "Range"}


def declarations(source: str) -> Iterator[tuple[str, set[str], set[str]]]:
    """(name, words of the annotation, keywords of `option`) of each option in the classes of a file."""
    for node in ast.walk(ast.parse(source)):
        for field in node.body if isinstance(node, ast.ClassDef) else ():
            call = field.value if isinstance(field, ast.AnnAssign) else None
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "option":
                words = {n.id for n in ast.walk(field.annotation) if isinstance(n, ast.Name)}
                yield ast.unparse(field.target), words, {k.arg or "" for k in call.keywords}


def without_range(source: str) -> list[str]:
    """The numbers that have no least or no largest value."""
    return [
        name
        for name, words, given in declarations(source)
        if words & NUMBERS and not (given & {"least", "above"} and given & {"most", "below"})
    ]


def test_every_number_has_a_range() -> None:
    files = [path.read_text(encoding="utf-8") for path in Path(carv_3d.__file__).parent.rglob("*.py")]
    assert sum(len(list(declarations(source))) for source in files) > 130
    assert [name for source in files for name in without_range(source)] == []


def test_a_number_without_a_range_would_be_seen() -> None:
    lines = [
        "class A:",
        '    a: int = option(3, "Some.", least=0)',
        '    b: tuple[float, ...] = option((), "Some.")',
        '    c: float | None = option(3, "Some.", above=0, below=1)',
        '    d: str = option("", "Some.")',
    ]
    assert without_range("\n".join(lines)) == ["a", "b"]


def test_ranges_are_written_in_digits_that_can_be_read() -> None:
    assert str(Limits(1, None, 10**7)) == " from 1 to 10,000,000"
    assert str(Limits(1, None, 2**40)) == " from 1 to 2^40"
    assert str(Limits(0.001, None, 179)) == " from 0.001 to 179"
    assert str(Limits(None, 0, 1e30)) == " above 0 and of at most 1e+30"
    assert str(Limits(0, None, None, 2**63)) == " of at least 0 and below 2^63"
    assert str(Limits(-1e6, None, 1e6)) == " from -1,000,000 to 1,000,000"
