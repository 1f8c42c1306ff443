"""The arguments of `carv attribute`."""

from __future__ import annotations

import argparse

from carv_3d.attribution.request import AttributeOptions
from carv_3d.cli.parser import OldForm, Parser, command, flags, the_word

EXAMPLE = 'carv attribute "a red mug"'
HELP = f"""carv attribute QUERY [--flag VALUE ...] [key=value ...]

Find the training images that most influenced an image, a prompt or an asset: a page and a table.

QUERY is an image file, a prompt, or the folder of a run of carv generate.
key=value sets an option; `carv options attribute` lists them. The first query computes a gradient
of every training image and keeps them; later queries are quick. Ctrl-C stops after the current
image; the same command continues.

examples:
  {EXAMPLE} num_draws=16
  carv attribute image.png --prompt 'a red mug' --model FOLDER --training-images FOLDER"""
OLD_FORMS = (
    OldForm("--draws", r"\d+", lambda values: [f"num_draws={v}" for v in values]),
    OldForm("--query-draws", r"\d+", lambda values: [f"query_draws={v}" for v in values]),
    OldForm("--data", r"(?!--).+", lambda values: [w for v in values for w in ("--training-images", v)]),
    OldForm("--dim", r"\d+", lambda values: [f"dim={v}" for v in values]),
)


def parser() -> Parser:
    """Of `carv attribute`'s arguments."""
    made = Parser("carv attribute", HELP, OLD_FORMS)
    names = ("model", "training_images", "items", "method", "views", "prompt", "resize", "lora", "fresh_rank", "store")
    made.declare(AttributeOptions, *names, "shard", "merge", "seed", "out")
    made.declare(AttributeOptions, "engine", "address", "workers", group="several workers")
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv attribute`: see its --help."""
    missing = "query is missing; name an image, the folder of a run, or a prompt"
    query = the_word(args.words, "queries", EXAMPLE, missing)
    from carv_3d.attribution.command import attribute
    from carv_3d.config.reader import read_options, read_words

    given = read_words(args.options, AttributeOptions(query=query))
    return attribute(read_options(AttributeOptions(query=query), {**given, **flags(args)}))
