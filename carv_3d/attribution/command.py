"""`carv attribute`: an image, a prompt or an asset, and the training images that made it what it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zipfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carv_3d.attribution.asking import MAX_ROUNDS, Asked
from carv_3d.attribution.encoded import EncodedImages, encoder_fingerprints
from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.folder_images import FolderImages
from carv_3d.attribution.image_files import list_images
from carv_3d.attribution.images import TinyImages, TrainingImages
from carv_3d.attribution.model import GradientModel
from carv_3d.attribution.queries import (
    Query,
    check_words,
    image_query,
    prompt_query,
    query_kind,
    run_model,
    run_query,
)
from carv_3d.attribution.ranking import Ranking, rank_query
from carv_3d.attribution.request import METHODS, QUERY_GROUPS, ROUND_GROUPS, AttributeOptions, check_data
from carv_3d.attribution.scores import Scores, kernel
from carv_3d.attribution.scoring import Scorer, WhiteScorer
from carv_3d.attribution.shares import Opened, make_rows, with_whole_paths
from carv_3d.attribution.shipped import PATH, DrawnImages, ShippedRows
from carv_3d.attribution.shipped import key as shipped_key
from carv_3d.attribution.shipped import load as load_shipped
from carv_3d.attribution.store import RowStore
from carv_3d.config.reader import to_mapping
from carv_3d.core.batching import out_of_memory_as
from carv_3d.core.memory import check_memory
from carv_3d.guidance.self_test import warn_if_poor
from carv_3d.io.files import (
    check_cache,
    claimed,
    expanded,
    folder_for,
    make_folder,
    open_file,
    replaced_folder,
    slug,
    user_cache,
    write_atomic,
    write_via,
)
from carv_3d.io.tables import csv_text
from carv_3d.runs.progress import Display, duration
from carv_3d.runs.ray_tasks import check_engine
from carv_3d.runs.request import new_folder
from carv_3d.teachers.families import DEFAULT_MODEL
from carv_3d.tiny.knowledge import model_knowledge

TOP = 20  # images whose probability of leading is given
TOO_LARGE = "memory ran out; lower query_draws, num_draws or dim"


def cache_folder() -> Path:
    """Where stores lie unless --store names a place: CARV_CACHE, or carv_3d in the user's cache.

    Raises:
        CarvError: it cannot be written.
    """
    named = os.environ.get("CARV_CACHE") or f"{user_cache()}/carv_3d"
    return check_cache(named, "set CARV_CACHE to a folder that can be")


def attribute(options: AttributeOptions) -> int:
    """Do it and return the exit status: 0 done, 130 or 143 stopped by a signal, with everything finished kept.

    Raises:
        CarvError: whatever the user can mend, before any work where it is known then; nothing is written over.
    """
    display, begin = Display(), time.perf_counter()
    check_engine(options)
    kind = query_kind(options.query)
    model_name = options.model or (run_model(expanded(options.query)) if kind == "run" else DEFAULT_MODEL)
    check_data(options.training_images, model_name)
    check_words(options.query if kind == "prompt" else options.prompt, model_name)
    default = Path("outputs") / f"attribution-{slug(Path(options.query).name or options.query)}"
    out = new_folder(options.out, default, "choose another --out")
    if options.store is None or options.training_images == "tiny":  # whose images are kept there too
        cache_folder()
    # shares of one query have the same folder, and leave it alone
    store = contextlib.nullcontext() if options.store is None else folder_for(options.store)
    with store, contextlib.nullcontext() if options.shard else claimed(out), out_of_memory_as(TOO_LARGE):
        return _attribute(options, kind, model_name, out, display, begin)


def _attribute(options: AttributeOptions, kind: str, model_name: str, out: Path, display: Display, begin: float) -> int:
    _check_memory(options)
    with display.status("loading the model"):
        teacher, model = _load(options, model_name)
    query = None
    if kind == "image":  # refused before any images are made
        query = image_query(expanded(options.query), options.prompt, teacher.image_size, options.resize)
    maker = FeatureMaker(model, options.features)
    shipped = _shipped(options, maker, teacher, display)
    images = _images(options, teacher.image_size, display) if shipped is None else DrawnImages(shipped.index)
    captions = sum(bool(images.caption(i)) for i in range(len(images)))
    if captions < len(images):
        display.say(f"{captions} of {len(images)} training images have a caption; the others are taken without text.")
    query = query or _query(kind, options, teacher, display)
    scorer: Scorer
    if shipped is None:
        base = _store_folder(options, maker, images)
        rows = _gradients(options, (images, teacher, model_name), maker, base, display)
        if isinstance(rows, int):
            return rows
        scorer = Scorer(options.method, rows.rows, None if options.method == "cosine" else kept_kernel(rows))
    else:
        base, scorer = PATH, shipped_scorer(options.method, shipped)
    asked = Asked(query, teacher, model, options, maker)
    whole = _query_features(asked, options, scorer, display).mean(0, keepdim=True)
    with display.status("scores"):
        scores = scorer(whole)
        ranking = rank_query(scorer, whole, scorer.items, scores, min(TOP, len(images)))
    facts = _facts(options, model_name, images, maker, asked, scorer.ridge, time.perf_counter() - begin)
    from carv_3d.attribution.page import render_page

    groups = (scorer.items.shape[1], whole.shape[1])
    page = render_page(query, images, scores, METHODS[options.method][1], facts, groups, ranking)
    settings = {**to_mapping(options), "model": model_name, "store": str(base), "out": str(out), "ridge": scorer.ridge}
    with replaced_folder(out) as new:  # all of it or nothing: the same command may follow a disk that was full
        write_atomic(new / "scores.csv", scores_csv(scores, images, ranking))
        write_atomic(new / "report.html", page)
        write_atomic(new / "settings.json", json.dumps(settings, indent=2))
        images.report.write(new)
    if ranking.differs_from_chance:
        best = scores.top(0, 3)
        display.say("Most influential: " + "; ".join(images.caption(i) or images.key(i) for i in best))
    display.say(ranking.words())
    display.say(f"Done: open {out / 'report.html'}")
    return 0


def _shipped(options: AttributeOptions, maker: FeatureMaker, teacher: Any, display: Display) -> ShippedRows | None:
    """The gradients that came with the package, where they are those that are asked for; else it is said why not."""
    if options.training_images != "tiny" or options.store is not None or options.shard or options.lora:
        return None
    rows = load_shipped(shipped_key(maker, encoder_fingerprints(teacher)), options.items)
    if isinstance(rows, str):
        display.say(rows)
        return None
    return rows


def shipped_scorer(method: str, shipped: ShippedRows) -> Scorer:
    """Of the rows that came with the package."""
    if method == "relatif":
        return WhiteScorer(shipped.rows, shipped.ridge)
    return Scorer(method, shipped.rows, ridge=None if method == "cosine" else shipped.ridge)


def _gradients(
    options: AttributeOptions,
    source: tuple[TrainingImages, Any, str],
    maker: FeatureMaker,
    base: Path,
    display: Display,
) -> RowStore | int:
    """The complete store of the training images' gradients; an exit status where this process ends without it.

    source: the images, the teacher, and the model's name.
    """
    images, teacher, model_name = source
    items, rows = _stores(options, images, teacher, maker, base)
    if rows.taken_over:
        display.say(f"{rows.taken_over} of {len(items)} gradients are those of an earlier query.")
    for place in map(expanded, options.merge):
        items.store.merge(place / "latents")
        count = rows.merge(place / _features_name(replace(options, store=place)))
        display.say(f"{count} gradients are those of {place}.")
    own_cache = options.store is not None and options.training_images != "tiny"
    cached = base if own_cache else cache_folder().resolve()
    there = partial(open_on_worker, with_whole_paths(options, model_name), cached)
    stopped = make_rows(options, (items, maker, rows), base, there, display)
    if stopped:
        display.say(f"Stopped; what is finished is in {base}, and the same command resumes there.")
        return 128 + stopped
    if not rows.complete:
        left = int((~rows.finished).sum())
        display.say(f"This share is done; {left} training images are left for the others. It is all in {base}.")
        return 0
    return rows


def _stores(
    options: AttributeOptions, images: TrainingImages, teacher: Any, maker: FeatureMaker, base: Path
) -> tuple[EncodedImages, RowStore]:
    """Of the latents and of the gradients, new or resumed."""
    items = EncodedImages(images, teacher, base / "latents", _earlier_stores(options, base, "latents"))
    name = _features_name(options)
    return items, maker.open_store(base / name, items, items.row_keys(), _earlier_stores(options, base, name))


@cache
def open_on_worker(options: AttributeOptions, cached: Path) -> Opened:
    """What a worker works on, once in its process.

    Args:
        options: with the model, and whole paths.
        cached: the cache of whoever asks, where no store is named.
    """
    os.environ["CARV_CACHE"] = str(cached)
    teacher, model = _load(options, str(options.model))
    maker = FeatureMaker(model, options.features)
    images = _images(options, teacher.image_size, Display(quiet=True))
    items, rows = _stores(options, images, teacher, maker, _store_folder(options, maker, images))
    return items, maker, rows


def _load(options: AttributeOptions, model_name: str) -> tuple[Any, GradientModel]:
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


def _check_memory(options: AttributeOptions) -> None:
    """CarvError where the kernel and what inverts it, or the query's rows in both precisions, are more than is free."""
    d, parts = options.dim or 0, {}
    if options.method != "cosine":
        parts[f"the kernel of dim = {d}"] = 3 * 8 * d**2
    groups = MAX_ROUNDS * ROUND_GROUPS if options.query_draws == "auto" else QUERY_GROUPS
    parts[f"a query of views = {options.views} and dim = {d}"] = 12 * options.views * groups * d
    check_memory(parts, "lower dim or views")


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


def scores_csv(scores: Scores, images: TrainingImages, ranking: Ranking) -> str:
    """Every training image with its score, standard error and probability of being in the true top, best first."""
    values, errors = scores.values[0].tolist(), scores.errors[0].tolist()
    probable = ranking.probabilities.tolist()
    rows = (
        (rank, images.key(i), images.caption(i), values[i], f"{errors[i]:.3g}", f"{probable[i]:.3g}")
        for rank, i in enumerate(scores.top(0, len(images)), 1)
    )
    return csv_text(["rank", "image", "caption", "score", "standard_error", f"in_top_{ranking.count}"], rows)


def _images(options: AttributeOptions, size: int, display: Display) -> TrainingImages:
    if options.training_images != "tiny":
        return _own_images(options, size, display)
    count = options.items or 2000
    folder = cache_folder() / "attribution" / f"tiny-images-{count}"
    make_folder(folder)
    return TinyImages(folder, count, display.say)


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


def _query(kind: str, options: AttributeOptions, teacher: Any, display: Display) -> Query:
    with display.status("the query's images"):
        if kind == "run":
            return run_query(expanded(options.query), teacher, options.views)
        return prompt_query(options.query, teacher, options.views, options.seed)


def _query_features(asked: Asked, options: AttributeOptions, scorer: Scorer, display: Display) -> Tensor:
    """(V, H, dim)."""
    if options.query_draws != "auto":
        with display.status("gradients of the query"):
            return asked.round()
    display.say("gradients of the query, until more draws could hardly change the ranking")
    with display.progress(0, MAX_ROUNDS, "round") as advance:
        return asked.until_stable(scorer, lambda rounds: advance(rounds, {}))


def _store_folder(options: AttributeOptions, maker: FeatureMaker, images: TrainingImages) -> Path:
    """A folder for this model and these images, unless one is named (and then checked)."""
    if options.store is not None:
        return options.store
    key = f"{maker.model.fingerprint()} {images.fingerprint()}"
    return cache_folder() / "attribution" / hashlib.sha256(key.encode()).hexdigest()[:16]


def _earlier_stores(options: AttributeOptions, base: Path, name: str) -> list[Path]:
    """The cache's stores of other images, whose rows a new one takes over; a named store stays by itself."""
    return [] if options.store is not None else sorted(p for p in base.parent.glob(f"*/{name}") if p.parent != base)


def _features_name(options: AttributeOptions) -> str:
    """In a folder that was named, other draws are refused; in the cache each have their own."""
    output = options.features.output
    if options.store is not None:
        return output
    words = json.dumps(options.features.stored(), sort_keys=True)
    return f"{output}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _facts(
    options: AttributeOptions,
    model_name: str,
    images: TrainingImages,
    maker: FeatureMaker,
    asked: Asked,
    ridge: float | None,
    seconds: float,
) -> dict[str, str]:
    made, spent = maker.meter.counts.get("items", 0), maker.meter.total_seconds
    facts = {
        "model": model_name.rstrip("/").rpartition("/")[2],
        "training images": f"{len(images):,}",
        "draws of each (K)": str(options.num_draws),
        "draws of a query's image": str(asked.rounds * options.query_features.draws.K),
        "in all": duration(seconds),
    }
    if options.lora:
        facts["gradients of adapters"] = f"{', '.join(options.lora)}, {maker.model.num_parameters:,} parameters"
    if options.training_images == "tiny" and not model_knowledge(model_name).training_data:
        facts["training images"] += " of carv-tiny, taken for this model's own"
    if made:
        facts["images a second (gradients)"] = f"{made / spent:.2f}"
    if asked.share == asked.share:
        facts["of the scores' error variance is the query's"] = f"{asked.share:.0%}"
    if ridge is not None:
        facts["ridge, of the mean eigenvalue"] = f"{ridge:.2g}"
    return facts
