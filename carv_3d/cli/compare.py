"""`carv compare`: its arguments, and what is done with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from carv_3d.cli.parser import OldForm, Parser, command, flags
from carv_3d.compare.request import CompareOptions, NewRuns, SweepOptions
from carv_3d.errors import CarvError

HELP = """carv compare [NAME=]RUN ... [--flag VALUE ...]
       carv compare --prompt TEXT --method NAME=... --method NAME=... --seconds N [key=value ...]

Compare runs: curves, tables, and a page with the assets to turn.

The first method is the baseline. New runs are interleaved, each with its own training time: a noisy
machine slows all alike. The same command continues where it was stopped. key=value sets an option of
all methods; `carv options generate` lists them.

examples:
  carv compare base=outputs/a-red-mug-0 ours=outputs/a-red-mug-0-2
  carv compare --prompt "a red mug" --prompt "a green tree" --seeds 3 --seconds 60 \\
      --method baseline=carv-tiny-baseline --method carv=num_draws=4,antithetic=true data.width=128"""
OLD_FORMS = (
    OldForm("--methods", r"(?!--).+", lambda words: [w for word in words for w in ("--method", word)]),
    OldForm("--set", r"[\w.]+=.*", lambda words: words),
    OldForm("--budget", r"(?!--).+", lambda words: ["--seconds", *words]),
)


def parser() -> Parser:
    """Of `carv compare`'s arguments."""
    made = Parser("carv compare", HELP, OLD_FORMS, takes_names=True)
    made.declare(CompareOptions, "baseline", "score=scores", "out", repeated=True)
    lengths = ("seconds=budget", "steps", "seeds", "points", "config", "clip")
    names = ("prompt=prompts", "method=methods", *lengths, "engine", "address", "workers")
    made.declare(NewRuns, *names, group="to make new runs", repeated=True)
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv compare`: see its --help. Returns the exit status."""
    given = flags(args)
    new = {name: given.pop(name) for name in NewRuns.declared() if name in given}
    compared = CompareOptions(**given)
    if {"prompts", "methods"} & new.keys():
        if args.words:
            raise CarvError(
                f"{args.words[0]} is a run that exists, and --prompt or --method ask for new ones; compare either, "
                "then name all folders together"
            )
        parser().refuse_two_forms(args)
        return _run(NewRuns(**new), compared, args)
    # without new runs no options are set: every word is a run, NAME=RUN too
    if not args.given:
        raise CarvError("there is nothing to compare; name run folders, or --prompt and --method to make runs")
    for flag, declared in parser().options.items():
        if declared.name in new:
            raise CarvError(f"{flag} is for new runs; add --prompt and --method, or leave it out")
    return _read(args.given, compared, args.command)


def _read(words: Sequence[str], compared: CompareOptions, command: str) -> int:
    """Compare run folders that are there."""
    from carv_3d.compare.reading import read_runs
    from carv_3d.compare.write import terminal_table, write_comparison
    from carv_3d.io.files import claimed
    from carv_3d.runs.progress import Display
    from carv_3d.runs.request import new_folder

    display = Display()
    folder = new_folder(compared.out, Path("outputs") / "compare", "choose another --out")
    runs = read_runs(words)
    _check_scores(compared.scores, {name for run in runs for name in run.metrics})
    with claimed(folder):
        comparison = write_comparison(folder, runs, compared.baseline, compared.scores, command)
    for line in [*terminal_table(comparison), f"Done: open {folder / 'compare.html'}"]:
        display.say(line)
    return 0


def _run(new: NewRuns, compared: CompareOptions, args: argparse.Namespace) -> int:
    """Make the runs, then compare them."""
    from carv_3d.compare.command import run_sweep
    from carv_3d.compare.methods import parse_methods
    from carv_3d.compare.scored_run import ScoredRun
    from carv_3d.compare.sweep import Sweep

    if not new.prompts:
        raise CarvError('--method needs a prompt to run it on: --prompt "a red mug"')
    if not new.methods:
        raise CarvError("--prompt needs what to run: --method NAME=key=value,... for each method")
    if (new.budget is None) == (new.steps is None):
        raise CarvError("say how long a run is: --seconds N of training time, or --steps N")
    methods = parse_methods(new.methods)
    names = [method.name for method in methods]
    if compared.baseline is not None and compared.baseline not in names:
        raise CarvError(f"--baseline is {compared.baseline!r}, and the methods are: {', '.join(names)}")
    _check_scores(compared.scores, set(ScoredRun.columns))
    options = {name: getattr(new, name) for name in SweepOptions.declared()}
    sweep = Sweep(list(dict.fromkeys(new.prompts)), methods, common=args.options, **options)
    return run_sweep(sweep, compared, new, args.command)


def _check_scores(scores: Sequence[str], known: set[str]) -> None:
    for score in scores:
        if score not in known:
            raise CarvError(f"--score is {score!r}, which no run has logged; there are: {', '.join(sorted(known))}")
