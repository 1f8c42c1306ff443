"""The arguments of `carv variance`."""

from __future__ import annotations

import argparse

from carv_3d.cli.parser import OldForm, Parser, command, flags, the_word
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded
from carv_3d.variance.methods import WORDS
from carv_3d.variance.request import VarianceRequest

EXAMPLE = "carv variance carv-tiny --prompt 'a red mug'"


def _from_grid(parts: list[str]) -> list[str]:
    flags = {"R": "--renders", "K": "--draws"}
    for part in parts:
        if part[:2] not in ("R=", "K="):
            raise CarvError(f"--grid is now --renders N,N and --draws N,N; {part!r} is neither R= nor K=")
    return [word for part in parts for word in (flags[part[0]], part[2:])]


METHOD_WORDS = "\n".join(f"  {name:<11} {word.help}" for name, word in WORDS.items())
HELP = f"""carv variance CONFIG_OR_RUN [--flag VALUE ...] [key=value ...]

Measure how noisy each estimator's gradient is, by source, how long a step takes, by phase,
and what both together cost: tables, variance.csv and charts.

methods are words joined by +:
{METHOD_WORDS}
The baseline is uniform with R = 2, K = 1. key=value sets an option of the run;
`carv options generate` lists them.

example:
  carv variance carv-tiny --prompt 'a red mug' --methods is,is+strat --draws 2,4 data.width=32"""
OLD_FORMS = (
    OldForm("--set", r"[\w.]+=.*", lambda words: words),
    OldForm("--grid", r"\w+=.*", _from_grid),
    OldForm("--at", r"\d[\d,]*", lambda steps: ["--at", ",".join(steps)]),
)


def parser() -> Parser:
    """Of `carv variance`'s arguments."""
    made = Parser("carv variance", HELP, OLD_FORMS)
    names = ("prompt", "methods", "renders=R", "draws=K", "at", "budget", "tolerance", "seed", "out", "resume")
    made.declare(VarianceRequest, *names)
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv variance`: see its --help."""
    source = the_word(args.words, "configurations or runs", EXAMPLE, "configuration or run is missing; name one")
    from carv_3d.variance.command import run

    return run(VarianceRequest(source=expanded(source), overrides=args.options, **flags(args)))
