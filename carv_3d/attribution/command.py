"""`carv attribute`: an image, a prompt or an asset, and the training images that made it what it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from carv_3d.attribution.ahead import ShippedAhead
from carv_3d.attribution.asking import MAX_ROUNDS, Asked
from carv_3d.attribution.choosing import choose_draws, kept_choice
from carv_3d.attribution.encoded import encoder_fingerprints
from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.image_files import find_tars
from carv_3d.attribution.images import TrainingImages, tiny_size
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
from carv_3d.attribution.scores import Scores
from carv_3d.attribution.scoring import Scorer
from carv_3d.attribution.shipped import PATH, DrawnImages
from carv_3d.attribution.shipped import key as shipped_key
from carv_3d.attribution.training_rows import (
    TINY_ITEMS,
    cache_folder,
    check_store,
    kept_kernel,
    load_model,
    make_gradients,
    store_folder,
    training_images,
)
from carv_3d.config.reader import to_mapping
from carv_3d.core.batching import out_of_memory_as
from carv_3d.core.memory import check_memory
from carv_3d.io.files import (
    claimed,
    expanded,
    folder_for,
    make_folder,
    replaced_folder,
    slug,
    write_atomic,
)
from carv_3d.io.tables import csv_text
from carv_3d.runs.progress import Display, duration
from carv_3d.runs.ray_tasks import check_engine
from carv_3d.runs.request import new_folder
from carv_3d.teachers.families import DEFAULT_MODEL
from carv_3d.tiny.knowledge import model_knowledge

TOP = 20  # images whose probability of leading is given
TOO_LARGE = "memory ran out; lower query_draws, num_draws or dim"


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
    if options.training_images != "tiny":
        find_tars(expanded(options.training_images))
    check_words(options.query if kind == "prompt" else options.prompt, model_name)
    default = Path("outputs") / f"attribution-{slug(Path(options.query).name or options.query)}"
    out = new_folder(options.out, default, "choose another --out")
    if options.store is None or options.training_images == "tiny":  # whose images are kept there too
        cache_folder()
    if options.store is not None:
        check_store(options.store)
    # shares of one query have the same folder, and leave it alone
    store = contextlib.nullcontext() if options.store is None else folder_for(options.store)
    with store, contextlib.nullcontext() if options.shard else claimed(out), out_of_memory_as(TOO_LARGE):
        return _attribute(options, kind, model_name, out, display, begin)


def _attribute(options: AttributeOptions, kind: str, model_name: str, out: Path, display: Display, begin: float) -> int:
    _check_memory(options)
    ahead = None if options.num_draws == "auto" else _ahead(options, display)
    with display.status("loading the model"):
        teacher, model = load_model(options, model_name)
    query = None
    if kind == "image":  # refused before any images are made
        query = image_query(expanded(options.query), options.prompt, teacher.image_size, options.resize)
    images = None if options.training_images == "tiny" else training_images(options, teacher.image_size, display)
    if options.num_draws == "auto":
        options = _with_draws(options, images, teacher, model, display)
        ahead = _ahead(options, display)
    maker = FeatureMaker(model, options.features)
    shipped = "" if ahead is None else ahead.get(shipped_key(maker, encoder_fingerprints(teacher)))
    if isinstance(shipped, tuple):
        images = DrawnImages(shipped[0].index)
    elif shipped:
        display.say(shipped)
    if images is None:
        images = training_images(options, teacher.image_size, display)
    captions = sum(bool(images.caption(i)) for i in range(len(images)))
    if captions < len(images):
        display.say(f"{captions} of {len(images)} training images have a caption; the others are taken without text.")
    query = query or _query(kind, options, teacher, display)
    scorer: Scorer
    if isinstance(shipped, str):
        base = store_folder(options, model, images)
        rows = make_gradients(options, (images, teacher, model_name), maker, base, display)
        if isinstance(rows, int):
            return rows
        scorer = Scorer(options.method, rows.rows, kept_kernel(rows) if METHODS[options.method].kernel else None)
    else:
        base, scorer = PATH, shipped[1]
    asked = Asked(query, teacher, model, options, maker)
    whole = _query_features(asked, options, scorer, display).mean(0, keepdim=True)
    with display.status("scores"):
        scores = scorer(whole)
        ranking = rank_query(scorer, whole, scorer.items, scores, min(TOP, len(images)))
    facts = _facts(options, model_name, images, maker, asked, scorer.ridge, time.perf_counter() - begin)
    from carv_3d.attribution.page import render_page

    groups = (scorer.items.shape[1], whole.shape[1])
    page = render_page(query, images, scores, METHODS[options.method].words, facts, groups, ranking)
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


def _with_draws(
    options: AttributeOptions, images: TrainingImages | None, teacher: Any, model: GradientModel, display: Display
) -> AttributeOptions:
    """num_draws=auto as a number: the one that was chosen for these images before, or a new choice."""
    if images is None:  # those of carv-tiny need not be made for this
        images = DrawnImages(range(options.items or TINY_ITEMS), tiny_size(teacher.image_size))
    maker = FeatureMaker(model, replace(options, num_draws=options.least_draws).features)
    words = json.dumps([maker.options.stored(), options.allocation], sort_keys=True)
    folder = store_folder(options, model, images)
    make_folder(folder)
    path = folder / f"draws-{hashlib.sha256(words.encode()).hexdigest()[:8]}.json"
    with display.status("the noise of a few training images"):
        choice = kept_choice(path, lambda: choose_draws(maker, images, teacher, options.least_draws))
    display.say(choice.words())
    return replace(options, num_draws=choice.num_draws)


def _ahead(options: AttributeOptions, display: Display) -> ShippedAhead | None:
    """The gradients that came with the package, if they may be those that are asked for; else it is said why not."""
    if options.training_images != "tiny" or options.store is not None or options.shard or options.lora:
        return None
    if options.allocation == "noise":
        display.say("The gradients that come with carv-tiny have equally many draws, so they are made anew.")
        return None
    return ShippedAhead(options)


def _check_memory(options: AttributeOptions) -> None:
    """CarvError where the kernel and what inverts it, or the query's rows in both precisions, are more than is free."""
    d, parts = options.dim or 0, {}
    if METHODS[options.method].kernel:
        parts[f"the kernel of dim = {d}"] = 3 * 8 * d**2
    groups = MAX_ROUNDS * ROUND_GROUPS if options.query_draws == "auto" else QUERY_GROUPS
    parts[f"a query of views = {options.views} and dim = {d}"] = 12 * options.views * groups * d
    check_memory(parts, "lower dim or views")


def scores_csv(scores: Scores, images: TrainingImages, ranking: Ranking) -> str:
    """Every training image with its score, standard error and probability of being in the true top, best first."""
    values, errors = scores.values[0].tolist(), scores.errors[0].tolist()
    probable = ranking.probabilities.tolist()
    rows = (
        (rank, images.key(i), images.caption(i), values[i], f"{errors[i]:.3g}", f"{probable[i]:.3g}")
        for rank, i in enumerate(scores.top(0, len(images)), 1)
    )
    return csv_text(["rank", "image", "caption", "score", "standard_error", f"in_top_{ranking.count}"], rows)


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
