"""`carv compare`: its arguments, and what is done with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from carv_3d.cli.parser import OldForm, Parser, check_budget, command
from carv_3d.errors import CarvError

ENGINES = ("local", "ray")
HELP = """carv compare [NAME=]RUN ... [--baseline NAME] [--score NAME] [--out DIR]
       carv compare --prompt TEXT --method NAME=... --method NAME=... --seconds N [key=value ...]

Compare runs: curves, tables, and a page with the assets to turn.

The first method is the baseline. New runs are interleaved, each with its own training time: a noisy
machine slows all alike. The same command continues where it was stopped. key=value sets an option of
all methods; `carv options generate` lists them.

examples:
  carv compare base=outputs/a-red-mug-0 ours=outputs/a-red-mug-0-2
  carv compare --prompt "a red mug" --prompt "a green tree" --seeds 3 --seconds 60 \\
      --method baseline=carv-tiny-baseline --method carv=num_draws=4,antithetic=true data.width=128"""
NEW_RUNS = ("seeds", "seconds", "steps", "points", "config", "clip", "engine", "address", "workers")
OLD_FORMS = (
    OldForm("--methods", r"(?!--).+", lambda words: [w for word in words for w in ("--method", word)]),
    OldForm("--set", r"[\w.]+=.*", lambda words: words),
    OldForm("--budget", r"(?!--).+", lambda words: ["--seconds", *words]),
)


def _parser() -> Parser:
    parser = Parser("carv compare", HELP, OLD_FORMS)
    parser.add_argument("--baseline", metavar="NAME", help="the method that others are compared with (default: first)")
    parser.add_argument("--score", action="append", metavar="NAME", help="also compare this metric (more is better)")
    parser.path("--out", metavar="DIR", help="the folder (default: in outputs/)")
    new = parser.add_argument_group("to make new runs")
    new.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; repeat it for several")
    new.add_argument("--method", action="append", metavar="NAME=...", dest="methods",
                     help="NAME alone, NAME=CONFIG, NAME=is+strat or NAME=key=value,...; repeat it")  # fmt: skip
    new.add_argument("--seconds", type=float, metavar="N", help="training time of each run")
    new.add_argument("--steps", type=int, metavar="N", help="steps of each run, in place of --seconds")
    new.add_argument("--seeds", type=int, metavar="N", help="runs of each prompt and method (default: 1)")
    new.add_argument("--points", type=int, metavar="N", help="evaluations of each run (default: 20)")
    new.add_argument("--config", type=Path, metavar="YAML", help="a configuration under all methods")
    new.add_argument("--clip", metavar="MODEL", help="score with this CLIP (a folder or a hub id)")
    new.add_argument("--engine", choices=ENGINES, help="local (default), or ray: several runs at once")
    new.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster (default: one is started here)")
    new.add_argument("--workers", type=int, metavar="N", help="workers of the Ray started here (default: cores)")
    return parser


@command(_parser)
def main(args: argparse.Namespace) -> int:
    """`carv compare`: see its --help. Returns the exit status."""
    if args.prompt is not None or args.methods is not None:
        if args.words:
            raise CarvError(
                f"{args.words[0]} is a run that exists, and --prompt or --method ask for new ones; compare either, "
                "then name all folders together"
            )
        return _run(args, args.command)
    # without new runs no options are set: every word is a run, NAME=RUN too
    args.runs = args.given
    if not args.runs:
        raise CarvError("there is nothing to compare; name run folders, or --prompt and --method to make runs")
    for name in NEW_RUNS:
        if getattr(args, name) is not None:
            raise CarvError(f"--{name} is for new runs; add --prompt and --method, or leave it out")
    return _read(args, args.command)


def _read(args: argparse.Namespace, command: str) -> int:
    """Compare run folders that are there."""
    from carv_3d.compare.reading import read_runs
    from carv_3d.compare.write import terminal_table, write_comparison
    from carv_3d.runs.progress import Display
    from carv_3d.runs.request import new_folder

    display = Display()
    folder = new_folder(args.out, Path("outputs") / "compare", "choose another --out")
    runs = read_runs(args.runs)
    _check_scores(args.score, {name for run in runs for name in run.metrics})
    comparison = write_comparison(folder, runs, args.baseline, args.score or (), command)
    for line in [*terminal_table(comparison), f"Done: open {folder / 'compare.html'}"]:
        display.say(line)
    return 0


def _run(args: argparse.Namespace, command: str) -> int:
    """Make the runs, then compare them."""
    from carv_3d.compare.command import run_sweep
    from carv_3d.compare.methods import parse_methods
    from carv_3d.compare.scored_run import ScoredRun
    from carv_3d.compare.sweep import Sweep

    if not args.prompt:
        raise CarvError('--method needs a prompt to run it on: --prompt "a red mug"')
    if not args.methods:
        raise CarvError("--prompt needs what to run: --method NAME=key=value,... for each method")
    if args.address is not None and args.engine != "ray":
        raise CarvError("--address names a Ray cluster; add --engine ray")
    if args.workers is not None and (args.engine != "ray" or args.address is not None):
        raise CarvError("--workers is for --engine ray without an --address; leave it out")
    if (args.seconds is None) == (args.steps is None):
        raise CarvError("say how long a run is: --seconds N of training time, or --steps N")
    if args.seconds is not None:
        check_budget(args.seconds, "--seconds")
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
        budget=args.seconds,
        steps=args.steps,
        points=args.points or 20,
        config=args.config,
        common=args.options,
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
