"""Training images' gradients made by several processes, on Ray: a store's rows are cut into shares, one a task.

A worker encodes the images of its share and makes their gradients, into the store that all see. What a killed worker
had finished stays; its share is given to another, which makes the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from carv_3d.attribution.encoded import EncodedImages
from carv_3d.attribution.features import FeatureMaker
from carv_3d.attribution.request import AttributeOptions
from carv_3d.attribution.store import UNIT, UNITS, RowStore
from carv_3d.io.files import expanded
from carv_3d.runs.progress import Display, StopSignals
from carv_3d.runs.ray_tasks import Tasks, run_on_ray

MOST_SHARES = 1000
RESUMED = "what is finished is in the store, and the same command resumes there"
Opened = tuple[EncodedImages, FeatureMaker, RowStore]


def make_rows(
    options: AttributeOptions, opened: Opened, base: Path, on_worker: Callable[[], Opened], display: Display
) -> int:
    """What is missing of this process's share, or on Ray of all.

    Args:
        options: which share, and where.
        opened: what is worked on.
        base: the folder of the stores.
        on_worker: gives the same to a worker, as of `share_tasks`.
        display: for the progress.

    Returns:
        0, or the number of the signal that stopped it.
    """
    items, maker, rows = opened
    if options.engine == "ray" and not rows.complete:
        display.say("encoding the training images and making their gradients, on Ray")
        return run_on_ray(share_tasks(rows, on_worker), base, display, options)
    shard, shards = options.share
    with StopSignals() as stop:
        for words, work in (
            ("encoding the training images", partial(items.encode, shard=shard, shards=shards)),
            ("their gradients", partial(maker.fill, rows, items, shard, shards)),
        ):
            display.say(words)
            if not _with_progress(display, len(items), stop, work):
                return stop.number
    return 0


def with_whole_paths(options: AttributeOptions, model: str) -> AttributeOptions:
    """The options as a process in another folder reads them, with the model that `model` names."""
    images, store = options.training_images, options.store
    return replace(
        options,
        model=os.path.abspath(model) if os.path.exists(model) else model,
        training_images=images if images == "tiny" else os.path.abspath(expanded(images)),
        store=None if store is None else Path(os.path.abspath(store)),
        lora=tuple(word if word == "fresh" else os.path.abspath(expanded(word)) for word in options.lora),
    )


def _with_progress(display: Display, total: int, stop: StopSignals, work: Callable[..., bool]) -> bool:
    begin = time.perf_counter()
    with display.progress(0, total) as advance:
        made = 0

        def show(done: int, of: int) -> bool:
            nonlocal made
            made += 1
            advance(done, {"seconds": (time.perf_counter() - begin) / made})
            return bool(stop.number)

        return work(show=show)


def share_tasks(rows: RowStore, opened: Callable[[], Opened]) -> Tasks:
    """The shares that lack rows.

    Args:
        rows: of all images.
        opened: gives a worker what it works on; it is pickled, and remembers what it gave.
    """
    shares = min(MOST_SHARES, max(-(-rows.count // (UNIT * UNITS)), min(rows.count, UNITS)))
    left = [(shard, shares) for shard in range(shares) if len(rows.pending(shard, shares))]
    return Tasks(partial(make_share, opened), left, shares - len(left), "share", RESUMED)


def make_share(
    opened: Callable[[], Opened], folder: Path, share: tuple[int, int], display: Display
) -> dict[str, float]:
    """What of a share (shard, shards) is missing, on a worker."""
    items, maker, rows = opened()
    items.encode(None, *share)
    maker.fill(rows, items, *share)
    return {}
