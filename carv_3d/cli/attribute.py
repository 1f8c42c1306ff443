"""The arguments of `carv attribute`."""

from __future__ import annotations

import argparse

from carv_3d.cli.parser import OldForm, Parser, command, flags, the_word

EXAMPLE = 'carv attribute "a red mug"'
HELP = f"""carv attribute QUERY [--model FOLDER] [--training-images FOLDER] [--items N] [--method NAME]
       [--views N] [--prompt TEXT] [--resize] [--store DIR] [--shard I/N] [--seed N] [--out DIR]
       [key=value ...]

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


def _parser() -> Parser:
    parser = Parser("carv attribute", HELP, OLD_FORMS)
    parser.add_argument("--model", metavar="FOLDER", help="a diffusers folder or hub id (default: carv-tiny)")
    parser.add_argument("--training-images", metavar="FOLDER",
                        help="images that the model was trained on (default: tiny, carv-tiny's)")  # fmt: skip
    parser.add_argument("--items", type=int, metavar="N", help="the first N of them (default: 2000 of carv-tiny's)")
    parser.add_argument("--method", metavar="NAME", help="relatif, trak, d-trak or cosine (default: relatif)")
    parser.add_argument("--views", type=int, metavar="N", help="images made of a prompt or run (default: 4)")
    parser.add_argument("--prompt", metavar="TEXT", help="the text that an image was made from")
    parser.add_argument("--resize", action="store_true", default=None, help="cut and scale images of another size")
    parser.path("--store", metavar="DIR", help="where gradients are kept (default: the cache)")
    parser.add_argument("--shard", metavar="I/N", help="compute this share of the gradients alone")
    parser.seed()
    parser.path("--out", metavar="DIR", help="the folder (default: outputs/attribution-<query>)")
    return parser


@command(_parser)
def main(args: argparse.Namespace) -> int:
    """`carv attribute`: see its --help."""
    missing = "query is missing; name an image, the folder of a run, or a prompt"
    query = the_word(args.words, "queries", EXAMPLE, missing)
    named = {name: value for name, value in flags(args).items() if value is not None}
    from carv_3d.attribution.command import AttributeOptions, attribute
    from carv_3d.config.reader import read_options, read_words

    given = read_words(args.options, AttributeOptions(query=query))
    return attribute(read_options(AttributeOptions(query=query), {**given, **named}))
