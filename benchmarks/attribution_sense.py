"""Does attribution find what a person would look for, and how quickly? carv-tiny and its own training images.

Queries are prompts of pairs of object and color that training shows. For each, the share of the 20 most influential
training images with the same object and with the same color, against the share among all. Then items a second by
phase, and the memory of the process as items go by: it does not grow with them.

    ./install.sh python benchmarks/attribution_sense.py [--items 2000] [--queries 12] [--draws 8] [--seed 0]
        [--model FOLDER]

--seed is of the queries. Gradients are kept in the cache: a run that is cut off goes on, and another method reuses
those of its loss.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time

import torch

from carv_3d.attribution import FeatureMaker, GradientModel
from carv_3d.attribution.command import METHODS, AttributeOptions, cache_folder, kept_kernel, score
from carv_3d.attribution.encoded import EncodedImages, embed, encode_images
from carv_3d.attribution.images import TinyImages
from carv_3d.attribution.metrics import shares_among
from carv_3d.attribution.queries import prompt_query
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny.vocabulary import OBJECTS

TOP = 20


def memory() -> float:
    """MiB, the most that the process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("items", 2000), ("queries", 12), ("draws", 8), ("query-draws", 64), ("threads", 2), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--methods", nargs="*", default=["relatif", "trak", "cosine"], choices=list(METHODS))
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    teacher = StableDiffusionTeacher.load(o.model)
    model = GradientModel.of_teacher(teacher)
    base = cache_folder() / "attribution" / f"sense-{model.fingerprint()}-{o.items}"
    images = TinyImages(base / "images", o.items)
    items = EncodedImages(images, teacher, base / "latents")
    begin, missing = time.perf_counter(), len(items.store.pending())
    items.encode()
    if missing:
        print(f"encoded {missing} images, {missing / (time.perf_counter() - begin):.0f} a second")
    labels = [images.labels(i) for i in range(len(images))]
    objects, colors = [x["object"] for x in labels], [x["color"] for x in labels]
    seen = sorted(set(zip(objects, colors)))
    asked = random.Random(o.seed).sample(seen, o.queries)
    prompts = [f"a {c} {OBJECTS[b][0]}" for b, c in asked]
    made = [prompt_query(p, teacher, 2, seed) for seed, p in enumerate(prompts)]
    table = []
    for method in o.methods:
        a = AttributeOptions(query="a red mug", num_draws=o.draws, query_draws=o.query_draws, method=method)
        maker = FeatureMaker(model, a.features)
        store = maker.open_store(base / f"{a.features.loss}-{o.draws}", items)

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
        query_maker = FeatureMaker(model, a.query_features, "query", projection=maker.projection)
        found = []
        gram = kept_kernel(store) if method != "cosine" else None
        begin = time.perf_counter()
        for (targets, tint), query in zip(asked, made):
            latents = encode_images(query.images, teacher)
            conditions = [embed(c, teacher) for c in query.captions]
            rows = [
                query_maker.feature(f"{query.prompt} {v}", z, c) for v, (z, c) in enumerate(zip(latents, conditions))
            ]
            scores, ridge = score(method, torch.stack(rows), store.rows, gram)
            top = scores.top(0, TOP)
            found.append((*shares_among(objects, targets, top), *shares_among(colors, tint, top)))
        per_query = (time.perf_counter() - begin) / len(asked)
        mean = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        note = "" if ridge is None else f", ridge {ridge:.2g}"
        table.append((method + note, *mean, per_query))
    print(f"\n{len(images)} training images, {o.draws} draws each, {o.queries} queries, the top {TOP}, {o.model}\n")
    print("| method | same object | by chance | same color | by chance | seconds a query |\n|---|---|---|---|---|---|")
    for method, obj, obj_chance, color, color_chance, seconds in table:
        print(f"| {method} | {obj:.0%} | {obj_chance:.1%} | {color:.0%} | {color_chance:.1%} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
