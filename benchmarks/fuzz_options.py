"""Every option of every command with odd values, and every flag: taken from their declarations, not listed."""

from __future__ import annotations

import importlib
import math
from argparse import Action
from collections.abc import Mapping
from typing import Any

from fuzz_files import GENERATE, MODEL, WORDS
from fuzz_guard import Case
from fuzz_mutations import DIGITS, ODD, Raw
from hypothesis import strategies as st

from carv_3d.cli import attribute, compare, distill, generate, options, variance
from carv_3d.core.options import Option

TEXTS = (
    "",
    " ",
    "null",
    "~",
    "true",
    "no",
    "nan",
    ".nan",
    "inf",
    "-.inf",
    "1e308",
    "1e999",
    "-1",
    "0",
    "1",
    "2",
    "3",
    "1.5",
    "1e3",
    "0x10",
    "1_000",
    "1:30",
    "7" * DIGITS,
    "2**40",
    "1000000000000",
    "9223372036854775808",
    "x",
    "auto",
    "none",
    "[]",
    "[1]",
    "[1,2]",
    "[0,1,0.5,100]",
    "[1,[2]]",
    "{}",
    "{a: 1}",
    "[" * 2000,
    "{{",
    "a: b: c",
    "!!python/name:os.system",
    "*a",
    "&a 1",
    "${seed}",
    "${oc.env:HOME}",
    "${",
    "# x",
    "'",
    '"',
    "a" * 100_000,
    "../..",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "~nobody/x",
    "é\u2028",
    "\x1b[2J",
    "\ud800",
    "-",
    "--",
    "%s",
    "<b>",
    "=",
    "a=b",
)


def near(option: Option) -> list[str]:
    """Values at and just past the ends of an option's range, and its words with a slip."""
    ends = [end for end in option.limits if end is not None]
    numbers = [f"{end + by:.12g}" for end in ends for by in (-1, 0, 1, 1e-9)]
    return [*numbers, *option.choices, *(f"{word}x" for word in option.choices)]


def must_refuse(option: Option, text: str) -> bool:
    """Whether the right answer is known: text or no number for a number, or a number out of its range."""
    if option.choices or option.kind not in (int, float):
        return False
    try:
        value = float(text.replace("_", "x"))
    except ValueError:
        return text in ("", " ", "x", "auto", "none", "[]", "[1]", "{}", "null", "~", "true", "no", "../..", "<b>")
    if not math.isfinite(value):
        return True
    low, above, high, below = option.limits
    out = (low is not None and value < low) or (above is not None and value <= above)
    out |= (high is not None and value > high) or (below is not None and value >= below)
    return out or (option.kind is int and value != int(value))


def declared(table: str) -> list[tuple[str, Option]]:
    """(dotted name, option) of everything of a table of `carv options`."""
    module, kind, _ = options.TABLES[table]
    made = getattr(importlib.import_module(module), kind)
    whole = made(query="a red mug") if "query" in made.declared() else made()
    return [(name, option) for name, option, _ in whole.walk() if not option.is_group]


COMMANDS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...], list[str]]] = {
    # area: table of options, parts of the base, words before and behind the option
    "options-dry-run": ("generate", ("m",), ("generate", "a red mug", "--dry-run", MODEL), GENERATE),
    "options-generate": ("generate", ("m",), ("generate", "a red mug", "--out", "o", MODEL), GENERATE),
    "options-distill": (
        "distill",
        ("m", "p.txt"),
        ("distill", "m", "--out", "o"),
        ["batch_size=1", "num_draws=1", "prompts=p.txt", "steps=1"],
    ),
    "options-attribute": ("attribute", ("m", "im", "st"), ("attribute", "im/2.png"), WORDS["ATTRIBUTE"]),
}


@st.composite
def option_cases(draw: Any, area: str) -> Case:
    """`carv ... key=value` with one option odd; what the others are keeps the run tiny."""
    table, parts, before, behind = COMMANDS[area]
    name, option = draw(st.sampled_from(declared(table)))
    text = draw(st.sampled_from(TEXTS) | st.sampled_from(near(option) or TEXTS))
    kept = [w for w in behind if not w.startswith(f"{name}=")]
    word = f"{name}={text}"
    return Case(word[:80], (*before, *kept, word), None, parts, {}, must_refuse(option, text))


@st.composite
def class_cases(draw: Any, table: str) -> Case:
    """An option class made with one odd value, as the library's users do."""
    module, kind, _ = options.TABLES[table]
    made = getattr(importlib.import_module(module), kind)
    name, option = draw(st.sampled_from([(n, o) for n, o in made.declared().items() if n != "query"]))
    note = draw(st.sampled_from(sorted(k for k, v in ODD.items() if not isinstance(v, Raw))))
    must = (
        must_refuse(option, str(ODD[note])) and isinstance(ODD[note], (int, float)) and not isinstance(ODD[note], bool)
    )
    needed = {"query": "a red mug"} if "query" in made.declared() else {}
    return Case(f"{kind}({name}={note})", (), lambda: made(**needed, **{name: ODD[note]}), must_refuse=must)


PARSERS = {
    "generate": (generate.parser, ("a red mug", "--dry-run", MODEL, *GENERATE)),
    "distill": (distill.parser, ("m", "--dry-run", "batch_size=1", "num_draws=1", "prompts=p.txt")),
    "distill variance": (
        distill.variance_parser,
        ("m", "prompts=p.txt", "--pairs", "2", "--settings", "1x1", "--budget", "1", "--out", "o"),
    ),
    "attribute": (attribute.parser, ("im/2.png", *WORDS["ATTRIBUTE"])),
    "variance": (variance.parser, ("r", "--out", "o", "--draws", "2", "--methods", "is", "--budget", "0.01")),
    "compare": (compare.parser, tuple(WORDS["SWEEP"])),
    "options": (options.parser, ()),
}


@st.composite
def flag_cases(draw: Any) -> Case:
    """A command with one flag odd, a flag twice, or words that are odd."""
    command = draw(st.sampled_from(sorted(PARSERS)))
    make, good = PARSERS[command]
    flags: list[Action] = [action for action in make()._actions if action.option_strings]
    flag = draw(st.sampled_from(flags))
    text = draw(st.sampled_from(TEXTS))
    form = draw(st.integers(0, 4))
    name = flag.option_strings[-1]
    odd = [(name, text), (f"{name}={text}",), (name,), (text,), (f"{text}=1",)][form]
    words = (*command.split(), *good, *odd) if draw(st.booleans()) else (*command.split(), *odd, *good)
    return Case(f"{command} {' '.join(odd)}"[:80], words, None, ("m", "im", "st", "r", "p.txt"))


def areas() -> dict[str, tuple[Any, set[str]]]:
    """Name -> (strategy above a base, its parts)."""
    out: dict[str, tuple[Any, set[str]]] = {}
    for area, (_, parts, _, _) in COMMANDS.items():
        out[area] = (lambda base, area=area: option_cases(area), set(parts))
    for table in options.TABLES:
        out[f"class-{table}"] = (lambda base, table=table: class_cases(table), set())
    out["flags"] = (lambda base: flag_cases(), {"m", "im", "st", "r", "p.txt"})
    return out
