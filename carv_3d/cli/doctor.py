"""`carv doctor`: what is on this machine, what is not, and how to fix it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from carv_3d.cli.doctor_model import BYTES, model_files
from carv_3d.cli.doctor_model import examine as examine_model
from carv_3d.cli.doctor_threestudio import CONFIG
from carv_3d.cli.doctor_threestudio import examine as examine_checkout
from carv_3d.cli.finding import Finding, installed, python
from carv_3d.cli.parser import Parser
from carv_3d.core.options import check_draws
from carv_3d.errors import CarvError, checkout, first_line, install_command, printable, shown
from carv_3d.io.files import folder_bytes
from carv_3d.version import __version__

HELP = """carv doctor
       carv doctor MODEL [--num-draws K] [--precision half] [key=value ...]
       carv doctor --threestudio PATH

Check what is installed, what is missing, and how to fix it. Status 0: carv can run.

MODEL, a folder or a hub id: what it holds, how it is read and what it needs, or why it is refused.
key=value is model_config=FOLDER, vae=FOLDER or vae=FILE, loras=[FILE:SCALE].

examples:
  carv doctor
  carv doctor /models/stable-diffusion-v1-5 --num-draws 8 --precision half"""
OF_MODELS: dict[str, Any] = {"num_draws": 1, "precision": "float32"}  # flags, with their defaults
#: What further commands need: an extra of the package, its modules, and what it is for.
EXTRAS = (
    ("compare", ("ray", "tensorboard", "torchmetrics"), "carv compare --engine ray, TensorBoard's files, CLIP score"),
    ("distill", ("accelerate",), "carv distill in several processes"),
    ("loggers", ("tensorboard", "wandb"), "logger=tensorboard, logger=wandb"),
    ("view", ("viser",), "carv generate --view, carv view"),
)


def set_up() -> str:
    """What installs all that is missing, as carv_3d is installed."""
    here = checkout()
    return install_command("all") if here is None else f"run ./install.sh in {here}"


def parser() -> Parser:
    """Of `carv doctor`'s arguments."""
    made = Parser("carv doctor", HELP)
    made.add_argument("--threestudio", metavar="PATH", help="Check a threestudio checkout and this Python instead")
    made.add_argument(
        "--num-draws", type=int, default=argparse.SUPPRESS, metavar="K", help="K of MODEL's memory (default: 1)"
    )
    kinds = "|".join(BYTES)
    made.add_argument(
        "--precision", choices=list(BYTES), default=argparse.SUPPRESS, metavar=kinds,
        help="Precision of MODEL's memory (default: float32)",
    )  # fmt: skip
    return made


def main(words: list[str]) -> int:
    """`carv doctor`: see its --help."""
    args = parser().read(words)
    if args is None:
        return 0
    if len(args.words) > 1 or (args.words and args.threestudio is not None):
        raise CarvError(f"carv doctor takes one model or one checkout, and not {shown(args.given[-1])} too")
    if not args.words:
        asked = [*args.options, *(f"--{name.replace('_', '-')}" for name in OF_MODELS if name in args)]
        if asked:
            raise CarvError(f"{asked[0]} is of a model, and none is named; see carv doctor --help")
        return report(threestudio=args.threestudio)
    model, files = args.words[0], model_files(args.options)
    num_draws, precision = (getattr(args, name, default) for name, default in OF_MODELS.items())
    check_draws(num_draws, antithetic=False)
    command = f'carv generate "a red mug" system.guidance.pretrained_model_name_or_path={model}'
    return show(examine_model(model, num_draws, precision, **files), " ".join([command, *args.options]))


def examine() -> list[Finding]:
    """All findings, in the order in which they are shown; nothing is downloaded and no model is loaded."""
    checks: list[Callable[[], Finding]] = [lambda: python("install Python 3.10 or newer"), _torch, _cuda]
    checks += [_package("nerfacc", "renders the field", "nerfacc>=0.5.2,<0.6")]
    checks += [_package("diffusers", "loads the diffusion models", "diffusers>=0.19,<0.44")]
    checks += [_package("transformers", "reads prompts", "transformers>=4.28,<6")]
    plain = (("omegaconf", "configs"), ("trimesh", "meshes"), ("xatlas", "textures"))
    checks += [_package(n, why, n) for n, why in plain]
    checks += [_package("skimage", "marching cubes", "scikit-image")]
    checks += [_ffmpeg, _tiny, _classifier, _hub, *(partial(_extra, *extra) for extra in EXTRAS)]
    checks += [_tcnn, _threestudio, _disk]
    return [check() for check in checks]


def report(print_line: Callable[[str], None] = print, threestudio: str | None = None) -> int:
    """Print the report; 0 if the main job can run, 1 if something that it needs is missing.

    threestudio: the folder of a checkout; the report is then about it, and the job is to train there.
    """
    if threestudio is not None:
        findings = examine_checkout(threestudio)
        next_step = f'python launch.py --config {CONFIG} --train --gpu 0 system.prompt_processor.prompt="a red mug"'
    else:
        findings, next_step = examine(), 'carv generate "a red mug"'
    return show(findings, next_step, print_line)


def show(findings: list[Finding], next_step: str, print_line: Callable[[str], None] = print) -> int:
    """Print findings, and the command to try next; 0, or 1 if something that is needed is missing."""
    print_line(f"carv_3d {__version__} on {platform.platform()}")
    width = max(len(f.name) for f in findings)
    for finding in findings:
        mark = "ok     " if finding.found else ("MISSING" if finding.needed else "absent ")
        print_line(printable(f"  {mark}  {finding.name:<{width}}  {finding.detail}"))
        if not finding.found and finding.fix:
            print_line(printable(f"           {'':<{width}}  -> {finding.fix}"))
    missing = [f.name for f in findings if f.needed and not f.found]
    if missing:
        print_line(f"Not ready: {', '.join(missing)}. What to do is above.")
        return 1
    print_line(f"Ready. Try: {next_step}")
    return 0


def _package(module: str, purpose: str, requirement: str) -> Callable[[], Finding]:
    def check() -> Finding:
        fix = f"{set_up()}, or: pip install '{requirement}'"
        if importlib.util.find_spec(module) is None:
            return Finding(module, False, f"not installed ({purpose})", fix, True)
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation fails in many ways; all of them are shown
            return Finding(module, False, f"installed, but does not load: {first_line(error)}", fix, True)
        distribution = "scikit-image" if module == "skimage" else module
        return Finding(module, True, f"{installed(distribution)} ({purpose})")

    return check


def _torch() -> Finding:
    finding = _package("torch", "everything runs on it", "torch>=2.0")()
    if finding.found:
        import torch

        finding.detail = f"{torch.__version__}, {torch.get_num_threads()} CPU threads"
    return finding


def _cuda() -> Finding:
    try:
        import torch
    except Exception:  # shown above
        return Finding("CUDA", False, "needs torch")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("CUDA", True, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if shutil.which("nvidia-smi") is None:
        fix = "none is needed for carv-tiny; for larger models, a machine with an NVIDIA GPU and its driver"
        return Finding("CUDA", False, "no NVIDIA GPU: the CPU is used", fix)
    fix = "CARV_TORCH=cuda ./install.sh after deleting .venv, and see that nvidia-smi lists a GPU"
    return Finding("CUDA", False, "nvidia-smi is here, but this build of torch sees no GPU", fix)


def _ffmpeg() -> Finding:
    fix = "pip install imageio-ffmpeg; without it a run still makes turntable.gif"
    try:
        import imageio_ffmpeg

        return Finding("ffmpeg", True, f"{imageio_ffmpeg.get_ffmpeg_version()} (turntable.mp4)")
    except Exception as error:  # ImportError, or RuntimeError where there is no binary for the platform
        return Finding("ffmpeg", False, f"not usable ({error})", fix)


def _tiny() -> Finding:
    fix = f"{set_up()}; the package is not whole"
    try:
        from carv_3d.teachers.availability import resolve_model
        from carv_3d.teachers.families import BUILT_IN

        size = sum(folder_bytes(resolve_model(name, local_files_only=True)) for name in BUILT_IN)
    except (CarvError, ImportError) as error:
        return Finding("carv-tiny", False, str(error), fix, True)
    about = f"{' and '.join(BUILT_IN)}, {size / 2**20:.0f} MiB, built in (objects, colors, materials)"
    return Finding("carv-tiny", True, about)


def _classifier() -> Finding:
    if importlib.util.find_spec("carv_3d.tiny.classifier") is None:
        return Finding("classifier", False, "not in this installation: runs show no score", set_up())
    try:
        from carv_3d.tiny.classifier import Classifier

        Classifier.load()
    except Exception as error:  # the file may be missing or damaged; a run continues without a score
        return Finding("classifier", False, f"does not load ({error}): runs show no score", set_up())
    return Finding("classifier", True, "scores carv-tiny's objects, colors and materials")


def _hub() -> Finding:
    try:
        from huggingface_hub import constants
    except ImportError:
        return Finding("model cache", False, "huggingface_hub is not installed", set_up())
    cache = Path(getattr(constants, "HF_HUB_CACHE", None) or constants.HUGGINGFACE_HUB_CACHE)
    names = []
    for folder in sorted(cache.glob("models--*")):
        if any(folder.glob("snapshots/*/model_index.json")):
            names.append("/".join(folder.name.split("--")[1:]))
    offline = " (offline mode is on)" if os.environ.get("HF_HUB_OFFLINE") else ""
    if names:
        return Finding("model cache", True, f"{cache}: {', '.join(names)}{offline}")
    fix = (
        "for any words: carv generate PROMPT system.guidance.pretrained_model_name_or_path=FOLDER_OR_HUB_ID "
        "(a hub id is downloaded once, about 5 GB)"
    )
    return Finding("model cache", False, f"no Stable Diffusion model in {cache}{offline}", fix)


def _extra(name: str, modules: Sequence[str], purpose: str) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return Finding(name, False, f"not installed: {', '.join(missing)} ({purpose})", install_command(name))
    return Finding(name, True, f"{', '.join(f'{module} {installed(module)}' for module in modules)} ({purpose})")


def _tcnn() -> Finding:
    if importlib.util.find_spec("tinycudann") is not None:
        return Finding("tiny-cuda-nn", True, installed("tinycudann"))
    fix = "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch (needs CUDA)"
    return Finding("tiny-cuda-nn", False, "not installed: the torch fields are used", fix)


def _threestudio() -> Finding:
    fix = "only for its users: ./install.sh --threestudio PATH, then carv doctor --threestudio PATH"
    named = os.environ.get("CARV_THREESTUDIO")
    if not named:
        return Finding("threestudio", False, "CARV_THREESTUDIO names no checkout (not needed by carv)", fix)
    try:
        missing = [f.name for f in examine_checkout(named) if f.needed and not f.found]
    except CarvError as error:
        return Finding("threestudio", False, f"CARV_THREESTUDIO: {error}", fix)
    state = f"{named} is not ready ({', '.join(missing)})" if missing else f"{named} is ready for threestudio-carv"
    return Finding("threestudio", not missing, state, f"carv doctor --threestudio {named}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    fix = "free some space: a run writes about 30 MB"
    return Finding("disk", free > 200 * 2**20, f"{free / 2**30:.1f} GiB free in {Path.cwd()}", fix, True)
