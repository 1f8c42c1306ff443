"""What `carv attribute` is asked about: an image, a prompt, or the folder of a run, made into images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from carv_3d.attribution.image_files import SUFFIXES
from carv_3d.attribution.images import Image, read_image
from carv_3d.errors import CarvError
from carv_3d.io.files import expanded, shown_path
from carv_3d.io.images import to_uint8
from carv_3d.teachers.latent_diffusion import LatentDiffusionTeacher
from carv_3d.tiny.knowledge import model_knowledge

GUIDANCE_SCALE = 3.5  # of the images that a prompt stands for
SAMPLE_STEPS = 30


@dataclass
class Query:
    """The images that are asked about, whose scores are averaged, and the caption of each.

    title: for the page. prompt: "" where none is known.
    """

    title: str
    prompt: str
    images: list[Image] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    note: str = ""


def query_kind(word: str) -> str:
    """What a query is: "image", "run" or "prompt".

    Raises CarvError for a path at which there is nothing, or the wrong thing.
    """
    path = expanded(word)
    try:
        if path.is_dir():
            if not (path / "config.yaml").exists():
                raise CarvError(
                    f"{path} is no run of carv generate (it holds no config.yaml): name such a folder, an image, "
                    "or a prompt."
                )
            return "run"
        if path.is_file():
            return "image"
    except OSError:  # a prompt longer than a name may be
        return "prompt"
    if word.startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES:
        raise CarvError(f"there is no {path}: name an image, the folder of a run, or a prompt.")
    if not word.strip():
        raise CarvError('the query is empty: name an image, the folder of a run, or a prompt such as "a red mug".')
    return "prompt"


def run_model(folder: Path) -> str:
    """The model that a run was made with. Raises CarvError for the folder of anything but a run of carv generate."""
    from carv_3d.generate.config import load_run

    try:
        config = load_run(folder)
    except CarvError as error:
        raise CarvError(
            f"{folder} is no run of carv generate (of its config.yaml: {str(error).rstrip('.')}): name such a folder, "
            "an image, or a prompt."
        ) from error
    guidance = config.system.guidance
    added = [name for name, value in guidance.model_files.items() if value]
    if added:
        raise CarvError(
            f"{folder} was made with {' and '.join(added)}, and carv attribute knows models without them alone: save "
            "the whole as a diffusers folder and make the run with that."
        )
    return guidance.pretrained_model_name_or_path


def check_words(prompt: str, model: str) -> None:
    """Raises CarvError for a prompt that is no plain text, or that the model is known not to know."""
    from carv_3d.generate.config import check_plain

    check_plain("the prompt", prompt)
    if prompt:
        model_knowledge(model).check_prompt(prompt)


def image_query(path: Path, prompt: str, size: int, resize: bool) -> Query:
    """One image, with the prompt that it was made from where that is known."""
    note = "" if prompt else "No prompt was given with the image, so the model was asked about it without one."
    return Query(shown_path(path.name), prompt, [read_image(path, size, resize)], [prompt], note)


def prompt_query(prompt: str, teacher: LatentDiffusionTeacher, count: int, seed: int) -> Query:
    """`count` images that the model makes from a prompt."""
    from carv_3d.guidance.sampling import prompt_images

    images = to_uint8(prompt_images(teacher, [prompt] * count, GUIDANCE_SCALE, SAMPLE_STEPS, seed))
    note = f"The model made these images from the prompt (guidance {GUIDANCE_SCALE}, seed {seed})."
    return Query(prompt, prompt, list(images), [prompt] * count, note)


def run_query(folder: Path, teacher: Any, count: int) -> Query:
    """`count` views around the asset of a run, at the size that the model sees."""
    from carv_3d.generate.config import load_run
    from carv_3d.generate.trainer import TextTo3D
    from carv_3d.generate.view_text import captions
    from carv_3d.runs.checkpoint import load_checkpoint

    config = load_run(folder)
    state, _ = load_checkpoint(folder / "checkpoint")
    host = TextTo3D(config, teacher, log=lambda text: None)
    host.load_state_dict(state)
    cameras = host.orbit(count)
    with torch.no_grad():
        views = to_uint8(host.views(cameras, teacher.image_size, teacher.image_size))
    prompt, texts = config.prompt, captions(host.prompts, cameras)
    note = f"Views of the asset after {host.step} steps; a training image's score is the mean over them."
    return Query(f"{prompt} (the run in {shown_path(folder.name)})", prompt, list(views), texts, note)
