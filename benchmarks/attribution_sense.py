"""Does attribution find images with the prompt's object and color, and how fast? carv-tiny and its training images.

Queries are prompts of training combinations. For each, the share of the 20 most influential training images with the
same object and with the same color, against the share among all. Then items a second by phase, and the memory of the
process as items go by: it does not grow with them.

    ./install.sh python benchmarks/attribution_sense.py [--items 2000] [--queries 12] [--draws 8] [--seed 0]
        [--model FOLDER]

--seed is of the queries. Gradients are kept in the cache: a run that was cut off is resumed, and another method reuses
those of its loss.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from attribution_metrics import shares_among
from bench import joined, script_parser

from carv_3d.attribution import FeatureMaker, GradientModel
from carv_3d.attribution.command import METHODS, AttributeOptions, cache_folder, kept_kernel, score
from carv_3d.attribution.encoded import EncodedImages, embed, encode_images
from carv_3d.attribution.images import TinyImages
from carv_3d.attribution.queries import prompt_query
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.vocabulary import OBJECTS

TOP = 20


def memory() -> float:
    """MiB, the most that the process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass
class Queries:
    """Prompts of combinations (object, color), their generated images, and the same of all training images."""

    asked: list[tuple[str, str]]
    made: list[Any]
    objects: list[str]
    colors: list[str]

    @classmethod
    def draw(cls, images: TinyImages, teacher: StableDiffusionTeacher, count: int, seed: int) -> Queries:
        """`count` of the combinations that the training images show."""
        labels = [images.labels(i) for i in range(len(images))]
        objects, colors = [x["object"] for x in labels], [x["color"] for x in labels]
        asked = random.Random(seed).sample(sorted(set(zip(objects, colors))), count)
        prompts = [f"a {color} {OBJECTS[obj][0]}" for obj, color in asked]
        return cls(asked, [prompt_query(p, teacher, 2, seed) for seed, p in enumerate(prompts)], objects, colors)


def encode(items: EncodedImages) -> None:
    """Encode what is not encoded yet."""
    begin, missing = time.perf_counter(), len(items.store.pending())
    items.encode()
    if missing:
        print(f"encoded {missing} images, {missing / (time.perf_counter() - begin):.0f} a second")


def fill(maker: FeatureMaker, store: Any, items: EncodedImages, method: str) -> None:
    """Make the features that are missing; prints the items a second, and the memory as they go by."""

    def show(done: int, total: int) -> bool:
        if done % max(1, total // 8) == 0:
            print(f"{done} of {total} items: {memory():.0f} MiB", flush=True)
        return False

    maker.fill(store, items, show=show)
    count = maker.meter.counts.get("items", 0)
    if count:
        each = {k: v / count * 1e3 for k, v in maker.meter.seconds.items()}
        words = ", ".join(f"{k} {v:.0f} ms an item" for k, v in each.items())
        print(f"{method}: {count / maker.meter.total_seconds:.2f} items a second ({words}), {memory():.0f} MiB")


def shares(
    method: str, maker: FeatureMaker, store: Any, queries: Queries, teacher: StableDiffusionTeacher
) -> tuple[str, list[float], float]:
    """The method with its ridge, the four mean shares of its top images, and the seconds a query."""
    results, ridge = [], None
    gram = kept_kernel(store) if method != "cosine" else None
    begin = time.perf_counter()
    for (obj, color), query in zip(queries.asked, queries.made):
        latents = encode_images(query.images, teacher)
        conditions = [embed(c, teacher) for c in query.captions]
        rows = [maker.feature(f"{query.prompt} {v}", z, c) for v, (z, c) in enumerate(zip(latents, conditions))]
        scores, ridge = score(method, torch.stack(rows), store.rows, gram)
        top = scores.top(0, TOP)
        results.append((*shares_among(queries.objects, obj, top), *shares_among(queries.colors, color, top)))
    seconds = (time.perf_counter() - begin) / len(queries.asked)
    note = "" if ridge is None else f", ridge {ridge:.2g}"
    return method + note, torch.tensor(results, dtype=torch.float64).mean(0).tolist(), seconds


def main() -> None:
    """The table of all methods."""
    parser = script_parser(__doc__, items=2000, queries=12, draws=8, query_draws=64, threads=2, seed=0)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--methods", type=joined(METHODS), default=["relatif", "trak", "cosine"])
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    teacher = StableDiffusionTeacher.load(o.model)
    model = GradientModel.from_teacher(teacher)
    base = cache_folder() / "attribution" / f"sense-{model.fingerprint()}-{o.items}"
    images = TinyImages(base / "images", o.items)
    items = EncodedImages(images, teacher, base / "latents")
    encode(items)
    queries = Queries.draw(images, teacher, o.queries, o.seed)
    table = []
    for method in o.methods:
        a = AttributeOptions(query="a red mug", num_draws=o.draws, query_draws=o.query_draws, method=method)
        maker = FeatureMaker(model, a.features)
        store = maker.open_store(base / f"{a.features.output}-{o.draws}", items)
        fill(maker, store, items, method)
        query_maker = FeatureMaker(model, a.query_features, "query", projection=maker.projection)
        table.append(shares(method, query_maker, store, queries, teacher))
    print(f"\n{len(images)} training images, {o.draws} draws each, {o.queries} queries, the top {TOP}, {o.model}\n")
    print("| method | same object | by chance | same color | by chance | seconds a query |\n|---|---|---|---|---|---|")
    for method, (obj, obj_chance, color, color_chance), seconds in table:
        print(f"| {method} | {obj:.0%} | {obj_chance:.1%} | {color:.0%} | {color_chance:.1%} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
