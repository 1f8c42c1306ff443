"""Where the training images' gradients lie, and how they are made there: by this process, by shares, or on Ray."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zipfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.by_noise import NoiseMaker
from carv_3d.attribution.encoded import EncodedImages
from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.folder_images import FolderImages
from carv_3d.attribution.image_files import list_images
from carv_3d.attribution.images import TinyImages, TrainingImages, tiny_size
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.options import FeatureOptions
from carv_3d.attribution.request import PILOT_DRAWS, AttributeOptions
from carv_3d.attribution.scores import kernel
from carv_3d.attribution.shares import Opened, make_rows, with_whole_paths
from carv_3d.attribution.store import RowStore
from carv_3d.errors import CarvError, shown
from carv_3d.guidance.self_test import warn_if_poor
from carv_3d.io.files import check_cache, expanded, explain_os_error, make_folder, open_file, user_cache, write_via
from carv_3d.runs.progress import Display

LATENTS = "latents"  # a store has them first
BEFORE_ROWS = r"[0-9a-f]{16}\.npy|draws-[0-9a-f]{8}\.json"  # what may be in one before there are any
TINY_ITEMS = 2000  # of carv-tiny's, where gradients are made and no number is named


def cache_folder() -> Path:
    """Where stores lie unless --store names a place: CARV_CACHE, or carv_3d in the user's cache.

    Raises:
        CarvError: it cannot be written.
    """
    named = os.environ.get("CARV_CACHE") or f"{user_cache()}/carv_3d"
    return check_cache(named, "set CARV_CACHE to a folder that can be")


def load_model(options: AttributeOptions, model_name: str) -> tuple[Any, GradientModel]:
    """The teacher, and what gradients are taken of: its network, or adapters of it."""
    from carv_3d.attribution import lora
    from carv_3d.teachers import load

    if options.lora:
        teacher, model = lora.load_with_lora(model_name, options.lora, options.fresh_rank, options.seed)
    else:
        teacher = load.load_teacher(model_name)
        model = GradientModel.from_teacher(teacher)
    warn_if_poor(teacher, model_name)
    return teacher, model


def training_images(options: AttributeOptions, size: int, display: Display) -> TrainingImages:
    """Those that the options name, at the model's size."""
    if options.training_images != "tiny":
        return _own_images(options, size, display)
    count = options.items or TINY_ITEMS
    size = tiny_size(size)
    stem = "tiny" if size == 64 else f"tiny-{size}"
    folder = cache_folder() / "attribution" / f"{stem}-images-{count}"
    make_folder(folder)
    return TinyImages(folder, count, display.say, size)


def _own_images(options: AttributeOptions, size: int, display: Display) -> FolderImages:
    """The images of a folder or of tars; what they turned out to be is said."""
    place = expanded(options.training_images)
    key = hashlib.sha256(f"{os.path.abspath(place)} {size} {options.resize}".encode()).hexdigest()[:16]
    kept = options.store or cache_folder() / "attribution" / "checked"
    make_folder(kept)
    listed = list_images(place)
    display.say("reading the training images")
    with display.progress(0, len(listed.files), "image") as advance:
        images = FolderImages(
            place, size, options.resize, options.items, kept / f"{key}.npy", listed, lambda done: advance(done, {})
        )
    images.report.say(len(images), display.say)
    return images


def store_folder(options: AttributeOptions, model: GradientModel, images: TrainingImages) -> Path:
    """A folder for this model and these images, unless one is named (and then checked)."""
    if options.store is not None:
        return options.store
    key = f"{model.fingerprint()} {images.fingerprint()}"
    return cache_folder() / "attribution" / hashlib.sha256(key.encode()).hexdigest()[:16]


def check_store(folder: Path) -> None:
    """CarvError where a folder that is named as the store holds something else, such as a run."""
    try:
        there = (
            sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
        )
    except OSError as error:
        raise explain_os_error(error, folder, "read") from error
    others = [name for name in there if not re.fullmatch(BEFORE_ROWS, name)]
    if others and LATENTS not in there:
        raise CarvError(
            f"{folder} is no store of gradients, it holds {shown(others[0])}; name a new folder for --store."
        )


def _earlier_stores(options: AttributeOptions, base: Path, name: str) -> list[Path]:
    """The cache's stores of other images, whose rows a new one takes over; a named store stays by itself."""
    return [] if options.store is not None else sorted(p for p in base.parent.glob(f"*/{name}") if p.parent != base)


def _features_name(options: AttributeOptions, pilot: bool) -> str:
    """In a folder that was named, other draws are refused; in the cache each have their own."""
    output = options.features.output
    if options.allocation == "noise":
        output += "-pilot" if pilot and options.store is not None else "" if pilot else "-by-noise"
    if options.store is not None:
        return output
    words = json.dumps(_features(options, pilot).stored(), sort_keys=True)
    return f"{output}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _features(options: AttributeOptions, pilot: bool) -> FeatureOptions:
    """Of equal draws, or of the pilot's: in the cache it is what allocation=equal makes with as many draws."""
    return replace(options, num_draws=PILOT_DRAWS, allocation="equal").features if pilot else options.features


def make_gradients(
    options: AttributeOptions,
    source: tuple[TrainingImages, Any, str],
    maker: FeatureMaker,
    base: Path,
    display: Display,
) -> RowStore | int:
    """The complete store of the training images' gradients; an exit status where this process ends without it.

    With allocation=noise the pilot is a store of its own, which is made first.

    Args:
        options: with K.
        source: the images, the teacher, and the model's name.
        maker: of K draws of each image. Its meter counts what is made.
        base: the folder of the stores.
        display: for the progress.
    """
    if options.allocation == "noise":
        pilot = _make(options, source, maker, base, display, pilot=True)
        if isinstance(pilot, int):
            return pilot
        maker.meter.counts["items"] = 0  # an image counts once
    return _make(options, source, maker, base, display, pilot=False)


def _make(
    options: AttributeOptions,
    source: tuple[TrainingImages, Any, str],
    shared: FeatureMaker,
    base: Path,
    display: Display,
    pilot: bool,
) -> RowStore | int:
    images, teacher, model_name = source
    items, maker, rows = open_stores(options, images, teacher, shared, base, pilot)
    maker.meter = shared.meter
    if rows.taken_over:
        display.say(f"{rows.taken_over} of {len(items)} gradients are those of an earlier query.")
    for place in map(expanded, options.merge):
        items.store.merge(place / LATENTS)
        count = rows.merge(place / _features_name(replace(options, store=place, merge=()), pilot))
        display.say(f"{count} gradients are those of {place}.")
    own_cache = options.store is not None and options.training_images != "tiny"
    cached = base if own_cache else cache_folder().resolve()
    there = partial(open_on_worker, with_whole_paths(options, model_name), cached, pilot)
    if pilot and not rows.complete:
        display.say(f"{PILOT_DRAWS} draws of each image first, by which its noise is measured")
    stopped = make_rows(options, (items, maker, rows), base, there, display)
    if stopped:
        display.say(f"Stopped; what is finished is in {base}, and the same command resumes there.")
        return 128 + stopped
    if not rows.complete:
        left, then = int((~rows.finished).sum()), " Then the same command makes the other draws." if pilot else ""
        display.say(f"This share is done; {left} training images are left for the others. It is all in {base}.{then}")
        return 0
    return rows


def open_stores(
    options: AttributeOptions, images: TrainingImages, teacher: Any, shared: FeatureMaker, base: Path, pilot: bool
) -> Opened:
    """The latents, and the gradients with their maker, new or resumed.

    Args:
        options: with K.
        images: the training images.
        teacher: encodes them.
        shared: a maker of the same model and options, whose layers and projection are used.
        base: the folder of the stores.
        pilot: of allocation=noise; else it must be complete.
    """
    items = EncodedImages(images, teacher, base / LATENTS, _earlier_stores(options, base, LATENTS))
    maker = FeatureMaker(shared.model, _features(options, pilot), projection=shared.projection)
    maker.share_layers(shared)
    name = _features_name(options, pilot)
    earlier = _earlier_stores(options, base, name)
    if options.allocation == "noise" and not pilot:
        _, first, rows = open_stores(options, images, teacher, shared, base, pilot=True)
        maker, earlier = NoiseMaker(options.features, first, rows.rows), []  # its rows depend on all images
    return items, maker, maker.open_store(base / name, items, items.row_keys(), earlier)


@cache
def open_on_worker(options: AttributeOptions, cached: Path, pilot: bool = False) -> Opened:
    """What a worker works on, once in its process.

    Args:
        options: with the model, and whole paths.
        cached: the cache of whoever asks, where no store is named.
        pilot: as of `open_stores`.
    """
    os.environ["CARV_CACHE"] = str(cached)
    teacher, model = load_model(options, str(options.model))
    maker = FeatureMaker(model, options.features)
    images = training_images(options, teacher.image_size, Display(quiet=True))
    return open_stores(options, images, teacher, maker, store_folder(options, model, images), pilot)


def kept_kernel(store: RowStore) -> Tensor:
    """The kernel of a complete store's rows, kept next to them for the next query."""
    path, key = store.folder / "kernel.npz", store.checksum()
    missing_or_damaged = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*missing_or_damaged), open_file(path, "") as file, np.load(file) as stored:
        if int(stored["rows"]) == key:
            return torch.from_numpy(stored["kernel"])
    gram = kernel(store.rows)
    write_via(path, lambda temporary: np.savez(temporary, kernel=gram.numpy(), rows=key))
    return gram
