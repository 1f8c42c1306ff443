"""The arguments of `carv distill`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from carv_3d.cli.parser import Parser, check_budget, command, flags, one_word, the_word
from carv_3d.errors import CarvError

HELP = """carv distill MODEL [--out DIR] [--seed N] [--resume] [--dry-run] [key=value ...]
       carv distill variance MODEL_OR_RUN [--settings A,B] [--out DIR] [key=value ...]

Train a one-step generator from a diffusion model, by distribution matching.

key=value sets an option; `carv options distill` lists them. Ctrl-C saves the run and stops.

examples:
  carv distill carv-tiny num_draws=8 steps=2000
  carv distill FOLDER prompts=FILE
  accelerate launch -m carv_3d.cli distill carv-tiny       several processes"""
VARIANCE_HELP = """carv distill variance MODEL_OR_RUN [--settings A,B] [--pairs N] [--budget SECONDS] [--seed N]
       [--out DIR] [key=value ...]

Measure the variance of the generator's gradient, next to the paper's: a table and variance.csv.

A setting is samples x draws, and strat, global or antithetic, joined by +.

example:
  carv distill variance carv-tiny --settings 8x1,8x16,8x16+strat --budget 120"""


def _parser() -> Parser:
    parser = Parser("carv distill", HELP)
    parser.run_flags("outputs/distill-<model>-<seed>", "settings, model")
    return parser


def _variance_parser() -> Parser:
    from carv_3d.distill.variance import DEFAULT

    parser = Parser("carv distill variance", VARIANCE_HELP)
    parser.names("--settings", DEFAULT, help=f"see below (default: {','.join(DEFAULT)})")
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="gradient pairs of a setting (default: 40)")
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="of all measuring (default: 600)")
    parser.seed()
    parser.path("--out", metavar="DIR", help="the folder (default: outputs/distill-variance-<model>)")
    return parser


def main(words: Sequence[str]) -> int:
    """`carv distill` and `carv distill variance`: see their --help."""
    return variance(words[1:]) if words[:1] == ["variance"] else distill(words)


@command(_parser)
def distill(args: argparse.Namespace) -> int:
    """`carv distill`: see its --help."""
    model = one_word(args.words, "models", "carv distill carv-tiny")
    if model is None and not args.resume:
        raise CarvError("the model is missing; name one, such as carv distill carv-tiny")
    from carv_3d.distill.command import distill as train
    from carv_3d.distill.command import dry_run
    from carv_3d.distill.request import DistillRequest

    request = DistillRequest(model=model, out=args.out, seed=args.seed, resume=args.resume, overrides=args.options)
    return dry_run(request) if args.dry_run else train(request)


@command(_variance_parser)
def variance(args: argparse.Namespace) -> int:
    """`carv distill variance`: see its --help."""
    example = "carv distill variance carv-tiny"
    source = the_word(args.words, "models", example, "model or run is missing; name one")
    check_budget(args.budget, "--budget")
    from carv_3d.distill.variance_command import VarianceRequest, measure

    return measure(VarianceRequest(model_or_run=source, overrides=args.options, **flags(args)))
