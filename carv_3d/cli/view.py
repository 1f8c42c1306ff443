"""The arguments of `carv view`."""

from __future__ import annotations

import argparse

from carv_3d.cli.parser import Parser, command, flags, the_word
from carv_3d.config.request import ViewOptions
from carv_3d.io.files import expanded

EXAMPLE = "carv view outputs/a-red-mug-0"
HELP = """carv view RUN [--view-address ADDRESS] [--view-port PORT]

Serve the scene of a run to a browser: turn it, zoom, look at it. Ctrl-C ends it.

examples:
  carv view outputs/a-red-mug-0
  carv generate "a red mug" --view      the same while it trains"""


def parser() -> Parser:
    """Of `carv view`'s arguments."""
    made = Parser("carv view", HELP)
    made.declare(ViewOptions, "view_address", "view_port")
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv view`: see its --help."""
    folder = expanded(the_word(args.given, "runs", EXAMPLE, "run is missing; name its folder"))
    from carv_3d.generate.live_view import view_run

    return view_run(folder, ViewOptions(**flags(args)))
