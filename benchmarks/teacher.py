"""Does carv-tiny draw what it is asked for? The judge's word on samples of 30 DDIM steps, seen and unseen pairs apart,
and, as the ceiling of what the judge can tell, on true renders of the same prompts.

    ./install.sh python benchmarks/teacher.py [--model FOLDER] [--samples 400] [--scale 3.5] [--sheet samples.png]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.teachers.tiny.judge import VIEWS, WEIGHTS, Judge
from carv_3d.teachers.tiny.objects import ROUND
from carv_3d.teachers.tiny.render import DISTANCE, FOVY, Shot, render
from carv_3d.teachers.tiny.vocabulary import COLOURS, OBJECTS, unseen_pairs

Wanted = list[tuple[str, str, str]]  # object, colour, view


@torch.no_grad()
def sample(teacher: StableDiffusionTeacher, prompts: list[str], scale: float, steps: int, seed: int) -> Tensor:
    """Pictures ``(N, 3, S, S)`` in [0, 1] by DDIM with classifier-free guidance."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(steps)
    shape = (len(prompts), teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    text, no_text = teacher.text_embeddings(prompts), teacher.text_embeddings([""] * len(prompts))
    for t in scheduler.timesteps:
        eps = teacher.eps_hat_cfg(z, t.expand(len(z)), text, no_text, scale)
        z = scheduler.step(eps, int(t), z).prev_sample
    return teacher.decode(z)


def agreement(judge: Judge, pictures: Tensor, wanted: Wanted) -> dict[str, float]:
    """Shares of pictures in which the judge names object, colour, both, and view (one of nine, where the object has
    a front to tell) as they were asked for."""
    logits = judge(pictures)
    names, tints = list(OBJECTS), list(COLOURS)
    obj = logits["object"].argmax(1) == torch.tensor([names.index(o) for o, _, _ in wanted])
    colour = logits["colour"].argmax(1) == torch.tensor([tints.index(c) for _, c, _ in wanted])
    views = [VIEWS[i] for i in logits["view"].argmax(1).tolist()]
    seen = [
        view == asked for view, (o, _, asked) in zip(views, wanted) if o not in ROUND or asked == "overhead view"
    ]
    return {
        "object": obj.float().mean().item(), "colour": colour.float().mean().item(),
        "both": (obj & colour).float().mean().item(), "view": float(np.mean(seen)),
    }  # fmt: skip


def row(title: str, judge: Judge, pictures: Tensor, wanted: Wanted) -> None:
    found = agreement(judge, pictures, wanted)
    print(f"| {title} | {len(wanted)} | " + " | ".join(f"{v:.1%}" for v in found.values()) + " |", flush=True)


def true_renders(wanted: Wanted, rng: random.Random) -> Tensor:
    """Pictures ``(N, 3, 64, 64)`` of what was asked for, from anywhere within the side that was asked for."""
    shots = []
    for obj, colour, view in wanted:
        overhead = view == "overhead view"
        elevation = rng.uniform(60, 90) if overhead else rng.uniform(-10, 45)
        azimuth = rng.uniform(0, 360) if overhead else 45 * VIEWS.index(view) + rng.uniform(-22.5, 22.5)
        shots.append(Shot(obj, colour, "plain", elevation, azimuth, rng.uniform(*DISTANCE), rng.uniform(*FOVY)))
    return torch.from_numpy(render(shots)[0]).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--scale", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--judge", type=Path, default=WEIGHTS)
    parser.add_argument("--no-judge", action="store_true")
    options = parser.parse_args()
    teacher, rng, unseen = StableDiffusionTeacher.load(options.model), random.Random(0), unseen_pairs()
    seen = [(o, c) for o in OBJECTS for c in COLOURS if (o, c) not in unseen]
    judge = None if options.no_judge else Judge.load(options.judge)
    print("| pairs | n | object | colour | both | view (of nine) |\n|---|---|---|---|---|---|")
    for title, pairs in (("seen", seen), ("unseen", sorted(unseen))):
        wanted = [(*pairs[i % len(pairs)], rng.choice(VIEWS)) for i in rng.sample(range(10**6), options.samples)]
        prompts = [f"a {c} {OBJECTS[o][0]}, {v}" for o, c, v in wanted]
        batches = [prompts[i : i + 50] for i in range(0, len(prompts), 50)]
        pictures = torch.cat([sample(teacher, b, options.scale, options.steps, i) for i, b in enumerate(batches)])
        if options.sheet and title == "seen":
            tiles = (pictures[:50].permute(0, 2, 3, 1).clamp(0, 1) * 255).byte().numpy()
            rows = [np.concatenate(list(tiles[i : i + 10]), 1) for i in range(0, len(tiles) // 10 * 10, 10)]
            iio.imwrite(options.sheet, np.concatenate(rows, 0))
            print("\n".join(prompts[:50]))
        if judge is not None:
            row(title, judge, pictures, wanted)
            row(f"{title}, true renders", judge, true_renders(wanted, rng), wanted)


if __name__ == "__main__":
    main()
