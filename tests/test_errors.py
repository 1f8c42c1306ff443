"""What an error of another library says in a sentence of ours."""

from __future__ import annotations

import pytest
from bench import run_script

from carv_3d.errors import CarvError, first_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("one.", "one"),
        ("\n  first: \nsecond", "first"),
        ("", "RuntimeError"),
        ("  \n ", "RuntimeError"),
        ("x" * 200, "x" * 160),
    ],
)
def test_the_first_line_of_a_message_or_the_class(message: str, expected: str) -> None:
    assert first_line(RuntimeError(message)) == expected
    assert first_line(ValueError("abcdef"), 3) == "abc"


def test_a_script_ends_with_its_status_or_its_sentence() -> None:
    def refuse() -> int:
        raise CarvError("no such thing")

    for main, code in ((lambda: 3, 3), (lambda: None, None), (refuse, "no such thing")):
        with pytest.raises(SystemExit) as ended:
            run_script(main)
        assert ended.value.code == code


def test_a_message_is_one_line_that_can_be_read() -> None:
    assert str(CarvError("a is [[1\n   2]]; é\x1b[2J\ud800 go")) == "a is [[1 2]]; é\\x1b[2J\\ud800 go"
