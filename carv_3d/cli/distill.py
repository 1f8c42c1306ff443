"""The arguments of `carv distill`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from carv_3d.cli.parser import Parser, command, flags, one_word, the_word
from carv_3d.config.request import DistillRequest
from carv_3d.distill.variance_request import VarianceRequest
from carv_3d.errors import CarvError

HELP = """carv distill MODEL [--flag VALUE ...] [key=value ...]
       carv distill variance MODEL_OR_RUN [--flag VALUE ...] [key=value ...]

Train a one-step generator from a diffusion model, by distribution matching.

key=value sets an option; `carv options distill` lists them. Ctrl-C saves the run and stops.

examples:
  carv distill carv-tiny num_draws=8 steps=2000
  carv distill FOLDER prompts=FILE
  accelerate launch -m carv_3d.cli distill carv-tiny       several processes"""
VARIANCE_HELP = """carv distill variance MODEL_OR_RUN [--flag VALUE ...] [key=value ...]

Measure the variance of the generator's gradient, next to the paper's: a table and variance.csv.

A setting is samples x draws, and strat, global or antithetic, joined by +.

example:
  carv distill variance carv-tiny --settings 8x1,8x16,8x16+strat --budget 120"""


def parser() -> Parser:
    """Of `carv distill`'s arguments."""
    made = Parser("carv distill", HELP)
    made.declare(DistillRequest, "out", "seed", "resume")
    made.dry_run("settings, model")
    return made


def variance_parser() -> Parser:
    """Of `carv distill variance`'s arguments."""
    made = Parser("carv distill variance", VARIANCE_HELP)
    made.declare(VarianceRequest, "settings", "pairs", "budget", "seed", "out")
    return made


def main(words: Sequence[str]) -> int:
    """`carv distill` and `carv distill variance`: see their --help."""
    return variance(words[1:]) if words[:1] == ["variance"] else distill(words)


@command(parser)
def distill(args: argparse.Namespace) -> int:
    """`carv distill`: see its --help."""
    model = one_word(args.words, "models", "carv distill carv-tiny")
    given = flags(args)
    dry = given.pop("dry_run")
    if not model and "resume" not in given:
        raise CarvError("the model is missing; name one, such as carv distill carv-tiny")
    from carv_3d.distill.command import distill as train
    from carv_3d.distill.command import dry_run

    request = DistillRequest(model=model, overrides=args.options, **given)
    return dry_run(request) if dry else train(request)


@command(variance_parser)
def variance(args: argparse.Namespace) -> int:
    """`carv distill variance`: see its --help."""
    example = "carv distill variance carv-tiny"
    source = the_word(args.words, "models", example, "model or run is missing; name one")
    from carv_3d.distill.variance_command import measure

    return measure(VarianceRequest(model_or_run=source, overrides=args.options, **flags(args)))
