"""`carv compare`: its arguments, and what is done with them."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from carv_3d.cli.parser import Parser
from carv_3d.errors import CarvError
from carv_3d.io.files import check_unused, unused

ENGINES = ("local", "ray")
EPILOG = """examples:
  carv compare base=outputs/a-red-mug-0 ours=outputs/a-red-mug-0-2
  carv compare --prompt "a red mug" --prompt "a green tree" --seeds 3 --budget 60 \\
      --methods baseline=configs/carv-tiny-baseline.yaml carv=num_draws=4

The first method is the baseline. Runs that are made here take turns, each by its training time, so that a noisy
machine hurts all alike; the same command goes on where it was stopped."""


def _parser() -> Parser:
    parser = Parser(
        prog="carv compare",
        description="Runs side by side: curves, tables, and a page with the assets to turn.",
        usage="carv compare [NAME=]RUN ... [--baseline NAME] [--out DIR]\n"
        "       carv compare --prompt TEXT ... --methods NAME=key=value,... ... --budget SECONDS [--seeds N]",
        epilog=EPILOG,
    )
    parser.add_argument("runs", nargs="*", metavar="[NAME=]RUN", help="folders of finished runs, threestudio's too")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt to run; may be repeated")
    parser.add_argument(
        "--methods", nargs="+", action="extend", metavar="NAME=key=value,...",
        help="what to run: NAME, NAME=FILE.yaml, or NAME and options of the configuration",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each prompt and method (default: 1)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of each run's training time")
    parser.add_argument("--steps", type=int, metavar="N", help="in place of --budget: equal steps, not equal seconds")
    parser.add_argument("--points", type=int, metavar="N", help="evaluations of each run (default: 20)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="a configuration under all methods")
    parser.add_argument("--set", action="append", metavar="key=value", help="an option of all methods")
    parser.add_argument("--clip", metavar="MODEL", help="score with this CLIP (a folder or a hub id)")
    parser.add_argument("--engine", choices=ENGINES, help="local (default), or ray: several runs at once")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster; without, one is begun here")
    parser.add_argument("--workers", type=int, metavar="N", help="of the Ray that is begun here (default: its cores)")
    parser.add_argument("--baseline", metavar="NAME", help="the method that the others are held against")
    parser.add_argument("--score", action="append", metavar="NAME", help="a logged metric of which higher is better")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where all of it goes (default: in outputs/)")
    return parser


def main(words: Sequence[str]) -> int:
    """`carv compare`: see its --help. Returns the exit status."""
    args = _parser().read(words)
    if args is None:
        return 0
    to_run = args.prompt is not None or args.methods is not None
    if args.runs and to_run:
        raise CarvError(
            f"{args.runs[0]} is a run that is there, and --prompt or --methods ask for new ones; compare either, "
            "then name all folders together"
        )
    if to_run:
        return _run(args, shlex.join(["carv", "compare", *words]))
    if not args.runs:
        raise CarvError("there is nothing to compare; name run folders, or --prompt and --methods to run")
    for name in ("seeds", "budget", "steps", "points", "config", "set", "clip", "engine", "address", "workers"):
        if getattr(args, name) is not None:
            raise CarvError(f"--{name} is for runs that are made here; add --prompt and --methods, or leave it out")
    return _read(args, shlex.join(["carv", "compare", *words]))


def _read(args: argparse.Namespace, command: str) -> int:
    """Compare run folders that are there."""
    from carv_3d.compare.reading import read_runs
    from carv_3d.compare.write import terminal_table, write_comparison
    from carv_3d.runs.progress import Display

    display = Display()
    folder = args.out or unused(Path("outputs") / "compare")
    check_unused(folder)
    runs = read_runs(args.runs)
    _check_scores(args.score, {name for run in runs for name in run.metrics})
    comparison = write_comparison(folder, runs, args.baseline, args.score or (), command)
    for line in [*(f"Note: {note}." for note in comparison.notes), *terminal_table(comparison)]:
        display.say(line)
    display.say(f"Done: open {folder / 'compare.html'}")
    return 0


def _run(args: argparse.Namespace, command: str) -> int:
    """Make the runs, then compare them."""
    from carv_3d.compare.command import run_sweep
    from carv_3d.compare.methods import parse_methods
    from carv_3d.compare.scored_run import ScoredRun
    from carv_3d.compare.sweep import Sweep

    if not args.prompt:
        raise CarvError('--methods needs a prompt to run them on: --prompt "a red mug"')
    if not args.methods:
        raise CarvError("--prompt needs what to run: --methods NAME=key=value,... NAME=key=value,...")
    if args.address is not None and args.engine != "ray":
        raise CarvError("--address is of a Ray cluster; add --engine ray")
    if args.workers is not None and (args.engine != "ray" or args.address is not None):
        raise CarvError("--workers is for --engine ray without an --address; leave it out")
    if (args.budget is None) == (args.steps is None):
        raise CarvError("say how long a run is: --budget SECONDS of training time, or --steps N")
    if args.budget is not None and not (math.isfinite(args.budget) and args.budget > 0):
        raise CarvError(f"--budget is {args.budget:g}; a run needs seconds above 0, such as --budget 60")
    for name, least in (("seeds", 1), ("points", 1), ("steps", 1), ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise CarvError(f"--{name} is {value}; it must be at least {least}")
    methods = parse_methods(args.methods)
    if args.baseline is not None and args.baseline not in [m.name for m in methods]:
        raise CarvError(f"--baseline is {args.baseline!r}, and the methods are: {', '.join(m.name for m in methods)}")
    _check_scores(args.score, set(ScoredRun.columns))
    sweep = Sweep(
        prompts=list(dict.fromkeys(args.prompt)),
        methods=methods,
        seeds=args.seeds or 1,
        budget=args.budget,
        steps=args.steps,
        points=args.points or 20,
        config=args.config,
        common=list(args.set or ()),
        clip=args.clip,
    )
    return run_sweep(
        sweep,
        args.out,
        engine=args.engine or "local",
        address=args.address,
        workers=args.workers,
        baseline=args.baseline,
        scores=args.score or (),
        command=command,
    )


def _check_scores(scores: Sequence[str] | None, known: set[str]) -> None:
    for score in scores or ():
        if score not in known:
            raise CarvError(f"--score is {score!r}, which no run has logged; there are: {', '.join(sorted(known))}")
