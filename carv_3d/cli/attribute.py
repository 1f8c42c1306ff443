"""The arguments of `carv attribute`."""

from __future__ import annotations

from pathlib import Path

from carv_3d.cli.parser import Parser
from carv_3d.errors import CarvError


def _parser() -> Parser:
    parser = Parser(
        prog="carv attribute",
        description="Which training images made this one: a page with the most and the least influential, a table.",
        epilog="The first query computes a gradient of every training image and keeps them; later ones are quick.\n"
        "Ctrl-C stops after the image at hand, and the same command goes on from there.",
    )
    parser.add_argument("query", nargs="*", metavar="QUERY", help="an image, a prompt, or a folder of carv generate")
    parser.add_argument("--model", metavar="FOLDER", help="a diffusers folder or hub id (default: carv-tiny)")
    parser.add_argument(
        "--data", default="tiny", metavar="FOLDER", help="the images it was trained on (default: tiny, carv-tiny's)"
    )
    parser.add_argument("--items", type=int, metavar="N", help="the first N of them (default: 2000 of carv-tiny's)")
    parser.add_argument(
        "--draws", dest="num_draws", type=int, default=8, metavar="K", help="draws per training image (default: 8)"
    )
    parser.add_argument(
        "--query-draws", type=int, default=64, metavar="K", help="draws per image of the query (default: 64)"
    )
    parser.add_argument("--views", type=int, default=4, metavar="N", help="images for a prompt or run (default: 4)")
    parser.add_argument(
        "--method", default="relatif", metavar="NAME", help="relatif, trak, d-trak or cosine (default: relatif)"
    )
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what an image was made from")
    parser.add_argument("--resize", action="store_true", help="cut and scale images of another size")
    parser.add_argument("--dim", type=int, default=2048, metavar="D", help="of the projection (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (default: 0)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where gradients are kept (default: the cache)")
    parser.add_argument(
        "--shard", default="", metavar="I/N", help="make this share of the gradients alone, for several processes"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder (default: outputs/attribution-<query>)")
    return parser


def main(words: list[str]) -> int:
    """`carv attribute`: see its --help."""
    args = _parser().read(words, intermixed=True)
    if args is None:
        return 0
    if not args.query:
        raise CarvError("the query is missing; name an image, a prompt, or the folder of a run of carv generate.")
    if len(args.query) > 1:
        raise CarvError(
            f"{len(args.query)} queries were given ({', '.join(map(repr, args.query[:3]))}); "
            'put a prompt in quotation marks, such as carv attribute "a red mug"'
        )
    from carv_3d.attribution.command import AttributeOptions, attribute

    return attribute(AttributeOptions(**{**vars(args), "query": args.query[0]}))
