"""`carv threestudio`: a stock configuration of threestudio, trained with CARV's guidance and nothing edited."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from carv_3d.cli.parser import Parser, command
from carv_3d.errors import CarvError, printable
from carv_3d.hosts.checkout import VARIABLE, find_checkout, how_to_link, link_problem
from carv_3d.hosts.models import withdrawn_sentence
from carv_3d.hosts.stock import SHORT, CarvConfig, open_values, with_counterparts
from carv_3d.io.files import expanded
from carv_3d.io.structured import look_up

ACTIONS = {
    "train": "Train, then render the test views",
    "test": "Render the test views of a checkpoint (resume=CKPT)",
    "validate": "Render its validation views",
    "export": "Export its asset",
}
HELP = f"""carv threestudio --config STOCK.yaml --train [--flag VALUE ...] [key=value ...]

Run threestudio's own launcher, in the active environment, on any of its configurations, with each
guidance replaced by CARV's of the same objective. Every option is kept, nothing is edited.

key=value sets an option, as threestudio's launch.py takes it. These go to each guidance by their last
name: {", ".join(SHORT)}.
prompt=TEXT is system.prompt_processor.prompt.

examples:
  carv threestudio --config configs/dreamfusion-sd.yaml --train prompt="a hamburger" num_draws=8 \\
      system.{{prompt_processor,guidance}}.pretrained_model_name_or_path=/models/stable-diffusion-2-1
  carv threestudio --config configs/magic123-coarse-sd.yaml --dry-run
  carv threestudio --config outputs/RUN/configs/parsed.yaml --train resume=outputs/RUN/ckpts/last.ckpt"""


def parser() -> Parser:
    """Of `carv threestudio`'s arguments."""
    made = Parser("carv threestudio", HELP)
    made.add_argument("--config", metavar="PATH", help="From here, or from the checkout")
    for name, text in ACTIONS.items():
        made.add_argument(f"--{name}", action="store_true", help=text)
    made.add_argument("--gpu", default="0", metavar="N,N", help="GPUs to use (default: 0)")
    made.add_argument("--threestudio", metavar="PATH", help=f"The checkout (default: this folder, or {VARIABLE})")
    made.add_argument("--verbose", action="store_true", help="threestudio's debug messages")
    made.add_argument("--dry-run", action="store_true", help="Print the resulting configuration; run nothing")
    return made


@command(parser)
def main(args: argparse.Namespace) -> int:
    """`carv threestudio`: see its --help."""
    if args.words:
        raise CarvError(f"{args.words[0]!r} is no option; a prompt is given as prompt='a red mug'")
    chosen = [name for name in ACTIONS if getattr(args, name)]
    if len(chosen) > 1:
        raise CarvError(f"--{' and --'.join(chosen)} exclude each other; give one of them")
    if args.config is None or (not chosen and not args.dry_run):
        missing = "--config PATH" if args.config is None else f"one of --{', --'.join(ACTIONS)}"
        raise CarvError(f"{missing} is missing, such as carv threestudio --config configs/dreamfusion-sd.yaml --train")
    try:
        root: Path | None = find_checkout(args.threestudio)
    except CarvError:
        if args.threestudio is not None or not args.dry_run:
            raise
        root = None  # a configuration by itself can be shown
    file = _config_file(args.config, root)
    made = with_counterparts(file, args.options, root)
    withdrawn = withdrawn_sentence(made.config["system"], root)
    if args.dry_run:
        return _show(made, withdrawn)
    assert root is not None
    _check_ready(root, made, withdrawn)
    _say(made.lines)
    from carv_3d.hosts.launch import run_launcher

    words = ["--config", str(file.absolute()), f"--{chosen[0]}", "--gpu", args.gpu, *["--verbose"] * args.verbose]
    return run_launcher(root, [*words, *made.words])


def _config_file(name: str, root: Path | None) -> Path:
    path = expanded(name)
    if path.exists() or root is None or not (root / path).exists():
        return path
    return root / path


def _show(made: CarvConfig, withdrawn: str) -> int:
    from omegaconf import OmegaConf

    _say([*made.lines, *filter(None, [withdrawn])])
    print(OmegaConf.to_yaml(OmegaConf.create(dict(made.config))), end="")
    return 0


def _check_ready(root: Path, made: CarvConfig, withdrawn: str) -> None:
    """Refuses what would end the run later, with a sentence each."""
    for name in ("system_type", "data_type"):
        if not isinstance(made.config.get(name), str):
            raise CarvError(
                f"this configuration names no {name}, so threestudio's launcher cannot run it; take another"
            )
    left = open_values(made.config)
    if left:
        raise CarvError(f"the configuration leaves {', '.join(left)} open; add {left[0]}=VALUE")
    if withdrawn:
        raise CarvError(withdrawn)
    image = look_up(made.config, "data.image_path")
    if made.config["data_type"] == "single-image-datamodule" and isinstance(image, str) and "${" not in image:
        _check_image(root, image)
    problem = link_problem(root)
    if problem:
        raise CarvError(f"the extension is not in this checkout ({problem}); {how_to_link(root)}")
    if importlib.util.find_spec("pytorch_lightning") is None:
        raise CarvError(f"{sys.prefix} lacks threestudio's packages; activate the environment where it is installed")


def _check_image(root: Path, image: str) -> None:
    """Refuses what threestudio's data module ends with a traceback for."""
    from carv_3d.teachers.view_condition import read_rgba

    read_rgba(str(root / expanded(image)) if image else "", name="data.image_path")


def _say(lines: list[str] | tuple[str, ...]) -> None:
    for line in lines:
        print(printable(line), file=sys.stderr)
