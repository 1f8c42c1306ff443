"""The arguments of `carv variance`."""

from __future__ import annotations

import argparse

from carv_3d.cli.parser import OldForm, Parser, check_budget, command, flags, the_word
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded
from carv_3d.variance.methods import DEFAULT, WORDS

EXAMPLE = "carv variance carv-tiny --prompt 'a red mug'"


def _from_grid(parts: list[str]) -> list[str]:
    flags = {"R": "--renders", "K": "--draws"}
    for part in parts:
        if part[:2] not in ("R=", "K="):
            raise CarvError(f"--grid is now --renders N,N and --draws N,N; {part!r} is neither R= nor K=")
    return [word for part in parts for word in (flags[part[0]], part[2:])]


METHOD_WORDS = "\n".join(f"  {name:<11} {word.help}" for name, word in WORDS.items())
HELP = f"""carv variance CONFIG_OR_RUN [--prompt TEXT] [--methods A,B] [--renders N,N] [--draws N,N]
       [--at N,N] [--budget SECONDS] [--tolerance SHARE] [--seed N] [--out DIR] [--resume]
       [key=value ...]

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
    p = Parser("carv variance", HELP, OLD_FORMS)
    p.add_argument("--prompt", default="", metavar="TEXT", help="the prompt, where the configuration has none")
    p.names("--methods", DEFAULT, help=f"estimators, see below (default: {','.join(DEFAULT)})")
    p.numbers("--renders", dest="R", default=(1,), help="R, renders of a step (default: 1)")
    p.numbers("--draws", dest="K", default=(1, 2, 4, 8), help="K, draws per render (default: 1,2,4,8)")
    p.numbers("--at", default=(), help="steps of the run to measure at (default: 10, 50 and 90 %%; of a run, its end)")
    p.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="of all measuring (default: 600)")
    p.add_argument("--tolerance", type=float, default=0.1, metavar="SHARE",
                   help="stop once every cost is known to this share of it (default: 0.1)")  # fmt: skip
    p.seed()
    p.path("--out", metavar="DIR", help="the folder (default: outputs/variance-<prompt>)")
    p.add_argument("--resume", action="store_true", help="continue what is in the folder")
    return p


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv variance`: see its --help."""
    source = the_word(args.words, "configurations or runs", EXAMPLE, "configuration or run is missing; name one")
    check_budget(args.budget, "--budget")
    from carv_3d.variance.command import VarianceRequest, run

    return run(VarianceRequest(source=expanded(source), overrides=args.options, **flags(args)))
