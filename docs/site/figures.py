"""The images of docs/how-it-works.md, from carv-tiny itself and from the measured docs/results/variance-default.csv.

`./install.sh python docs/site/figures.py` takes a minute on one core and writes docs/images/*.png.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("agg")
import matplotlib.pyplot as plt

from carv_3d import CarvEstimator, EstimatorOptions, StableDiffusionTeacher
from carv_3d.core.designs import Design
from carv_3d.core.proposals import make_proposal
from carv_3d.guidance.cfg import classifier_free
from carv_3d.tiny.render import Shot, render

DOCS = Path(__file__).resolve().parents[1]
BLUE, ORANGE, GRAY, GREEN = "#2a78b5", "#dd6b20", "#9aa5b1", "#2f855a"
PROMPT, SCALE = "a red mug, side view", 2.0  # the scale of the default scene
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 160, "axes.titlesize": 10.5,
    "savefig.facecolor": "white", "axes.titlelocation": "left", "legend.frameon": False, "font.family": "DejaVu Sans",
}  # fmt: skip


class Scene:
    """A true object under its own prompt: a run spends most of its steps near its goal."""

    def __init__(self, obj: str = "mug", color: str = "red", azimuth: float = 90.0, prompt: str = PROMPT) -> None:
        self.teacher = StableDiffusionTeacher.load("carv-tiny", device="cpu")
        self.schedule = self.teacher.schedule
        rgb, _ = render([Shot(obj, color, "plain", 20.0, azimuth, 2.75, 39.0)], 64, threads=1)
        self.images = torch.tensor(rgb).permute(0, 3, 1, 2).float().div(255).requires_grad_()
        self.z = self.teacher.encode(self.images, sample=False)
        self.text = self.teacher.text_embeddings([prompt, ""])

    def eps_hat(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Under classifier-free guidance."""
        text, uncond = (e[None].expand(len(t), -1, -1) for e in self.text)
        return classifier_free(self.teacher.eps_hat, z_t, t, [text], [uncond], SCALE)

    def estimate(self, K: int, seed: int = 0, **options: Any) -> Any:
        """K draws of this render."""
        estimator = CarvEstimator(self.schedule, EstimatorOptions(num_draws=K, **options))
        return estimator.estimate(self.z, self.eps_hat, generator=torch.Generator().manual_seed(seed))

    def pixels(self, f: Tensor) -> Tensor:
        """J^T f in the image, (3, H, W); J is the encoder's."""
        return torch.autograd.grad(self.z, self.images, f[None], retain_graph=True)[0][0]


def image(x: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] for matplotlib."""
    return x.detach().clamp(0, 1).permute(1, 2, 0).numpy()


def reuse(scene: Scene) -> None:
    """One render and one encode; K noised latents; each draw's gradient, and their mean."""
    estimate = scene.estimate(32, seed=3)
    shown = estimate.t[0].argsort()[[4, 12, 20, 28]]
    t, eps = estimate.t[0][shown], estimate.eps[0][shown]
    noised = scene.teacher.decode(scene.schedule.add_noise(scene.z.detach().expand(4, -1, -1, -1), eps, t))
    weighted = estimate.weights[0].view(-1, 1, 1, 1) * estimate.residual[0]
    each = [scene.pixels(weighted[k]) for k in shown]
    mean = scene.pixels(estimate.grad[0])
    scale = 0.5 / float(torch.stack(each).abs().quantile(0.995))
    fig, axes = plt.subplots(2, 6, figsize=(9.6, 3.75), gridspec_kw={"wspace": 0.1, "hspace": 0.32})
    axes[0, 0].imshow(image(scene.images[0]))
    axes[0, 0].set_title("one render")
    for k in range(4):
        axes[0, k + 1].imshow(image(noised[k]))
        axes[0, k + 1].set_title(f"draw {k + 1}: t = {int(t[k])}")
        axes[1, k + 1].imshow(image(0.5 - scale * each[k]))
    axes[1, 0].text(0.5, 0.5, "how each draw\nalone would\nchange it", ha="center", va="center")
    axes[0, 5].text(0.5, 0.5, "... 32 draws", ha="center", va="center")
    axes[1, 5].imshow(image(0.5 - scale * mean))
    axes[1, 5].set_title("mean of all 32")
    for axis in axes.flat:
        axis.axis("off")
    save(fig, "reuse")


def importance(scene: Scene) -> None:
    """The densities p and q, and what a draw contributes under each."""
    low, high = 20, 980
    q = make_proposal("weight", scene.schedule, "sds", low, high).q
    t = torch.arange(low, high + 1)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2), gridspec_kw={"wspace": 0.25})
    left.fill_between(t, 0, 1000 / len(t), color=GRAY, alpha=0.35, lw=0, label="p, the objective's own")
    left.plot(t, 1000 * q, color=ORANGE, lw=2, label="q, in proportion to p w: where they are drawn")
    left.set(xlabel="timestep t", ylabel="probability, in thousandths", ylim=(0, 2.3), xlim=(0, 1000))
    left.legend(loc="upper left", fontsize=9)
    left.set_title("Where timesteps are drawn")
    for name, color, words in (("uniform", GRAY, "drawn from p"), ("weight", ORANGE, "drawn from q")):
        e = scene.estimate(240, seed=5, proposal=name, stratify="none", max_batch=40)
        size = e.weights[0] * e.residual[0].flatten(1).norm(dim=1)
        spread = float(size.std() / size.mean())
        right.scatter(e.t[0], size / size.mean(), s=9, color=color, label=f"{words}: spread {spread:.2f} of the mean")
    right.set(xlabel="timestep t", ylabel="size of (p/q) f, mean = 1", xlim=(0, 1000), ylim=(0, 2.9))
    right.legend(loc="upper left", fontsize=9)
    right.set_title("What one draw contributes")
    save(fig, "importance")


def strata(scene: Scene) -> None:
    """One u in each of K equal parts, and the timesteps that the inverse CDF makes of them."""
    K, rows = 8, 12
    proposal = make_proposal("weight", scene.schedule, "sds", 20, 980)
    t, cdf = torch.arange(20, 981), proposal.q.cumsum(0)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), gridspec_kw={"wspace": 0.22})
    u = Design(stratify="render").draw_u(1, K, torch.Generator().manual_seed(1))
    drawn, _ = proposal.sample(u)
    for b in range(0, K, 2):
        left.axhspan(b / K, (b + 1) / K, color=BLUE, alpha=0.08, lw=0)
    left.plot(t, cdf, color="#333333", lw=1.6)
    for x, y in zip(drawn[0].tolist(), u[0].tolist()):
        left.plot([0, x, x], [y, y, 0], color=BLUE, lw=0.9)
    left.plot(drawn[0], u[0], "o", color=BLUE, ms=4)
    left.set(xlabel="timestep t", ylabel="u, and the CDF of q", xlim=(0, 1000), ylim=(0, 1))
    left.set_title(f"One u in each of {K} equal parts gives {K} timesteps")
    for name, color, first in (("none", GRAY, rows), ("render", BLUE, 0)):
        u = Design(stratify=name).draw_u(rows, K, torch.Generator().manual_seed(2))  # type: ignore[arg-type]
        drawn, _ = proposal.sample(u)
        height = (first + torch.arange(rows) + 0.5 + (1.5 if first else 0)).view(-1, 1).expand(-1, K)
        right.scatter(drawn, height, s=10, color=color)
    right.set(xlabel="timestep t", xlim=(0, 1000), ylim=(0, 2 * rows + 2))
    right.set_yticks([rows / 2, rows * 1.5 + 1.5], ["in strata", "independent"], rotation=90, va="center")
    right.set_title(f"{rows} steps each: clumps and gaps, or none")
    right.spines["left"].set_visible(False)
    right.tick_params(axis="y", length=0)
    save(fig, "strata")


def pairs(scene: Scene) -> None:
    """The noise in f at eps against that at -eps, of one pair; what is left in the mean of two draws."""
    n = 192
    e = scene.estimate(2 * n, seed=7, antithetic=True, stratify="none", max_batch=32)
    f = e.weights[0].view(-1, 1) * e.residual[0].flatten(1)
    off = f - f.mean(0)
    off = off / off.square().sum(1).mean().sqrt()  # a single draw has variance 1
    first, second = off[0::2], off[1::2]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), gridspec_kw={"wspace": 0.25, "width_ratios": [1, 1.5]})
    k = int((e.t[0, 0::2] - 450).abs().argmin())
    a, b = first[k] / first[k].std(), second[k] / second[k].std()
    left.scatter(a, b, s=5, color=GREEN, alpha=0.6, lw=0)
    ends = (-4.5, 4.5)
    left.plot(ends, ends[::-1], color=GRAY, lw=0.8, zorder=0)
    left.set(xlabel="noise in f at eps", ylabel="noise in f at -eps", xlim=ends, ylim=ends, aspect="equal")
    left.set_title(f"One pair at t = {int(e.t[0, 2 * k])}, a dot a latent")
    bins = np.linspace(0, 2, 41).tolist()
    for other, color, words in ((second.roll(1, 0), GRAY, "two independent draws"), (second, GREEN, "one pair")):
        distance = ((first + other) / 2).square().sum(1)
        label = f"{words}: {float(distance.mean()):.2f} on average"
        right.hist(distance.clamp(max=2), bins, color=color, alpha=0.65, label=label)
    right.set(xlabel="squared distance of the mean of two from the gradient; 1 = that of one draw", ylabel=f"of {n}")
    right.legend(loc="upper right", fontsize=9)
    right.set_title("What is left in the mean of two")
    save(fig, "pairs")


def correlations() -> None:
    """Print how pairs correlate in eight renders, over all latents and timesteps."""
    views = ((0, "front view"), (90, "side view"), (180, "back view"), (270, "side view"))
    for obj, color in (("mug", "red"), ("chair", "blue")):
        for azimuth, view in views:
            scene = Scene(obj, color, azimuth, f"a {color} {obj}, {view}")
            e = scene.estimate(96, seed=5, antithetic=True, stratify="none", max_batch=32)
            f = e.weights[0].view(-1, 1) * e.residual[0].flatten(1)
            off = f - f.mean(0)
            both = 2 * (off[0::2] * off[1::2]).sum() / off.square().sum()
            print(f"{obj} from {azimuth}: correlation of a pair {float(both):.2f}", flush=True)


def accounting(at: int = 20) -> None:
    """Variance by source, seconds by kind, and their product, of measured settings."""
    with (DOCS / "results" / "variance-default.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == at]
    names = {"uniform": "uniform", "is+strat": "importance, strata", "is+strat+antithetic": "and pairs"}
    settings = [("uniform", 2, 1), ("uniform", 1, 4), ("is+strat", 1, 4)]
    settings += [("is+strat+antithetic", 1, 2), ("is+strat+antithetic", 1, 4), ("is+strat+antithetic", 1, 8)]
    labels = [f"{names[m]}\n({R}, {K})" for m, R, K in settings]
    labels[3] = "imp., strata, pairs\n(1, 2)"
    labels[4:] = ["(1, 4)", "(1, 8)"]
    same = [[r for r in rows if (r["method"], int(r["R"]), int(r["K"])) == s] for s in settings]
    base = {row["prompt"]: row for row in same[0]}

    def mean(value: Callable[[dict[str, str], dict[str, str]], float]) -> list[float]:
        return [sum(value(row, base[row["prompt"]]) for row in group) / len(group) for group in same]

    draws = mean(lambda r, b: max(0.0, float(r["v_in"])) / float(b["variance"]))
    total = mean(lambda r, b: float(r["variance"]) / float(b["variance"]))
    denoise = mean(lambda r, b: float(r["seconds_denoise"]) / float(b["seconds"]))
    seconds = mean(lambda r, b: float(r["seconds"]) / float(b["seconds"]))
    logs = mean(lambda r, b: math.log(float(r["ecm"])))
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True, gridspec_kw={"wspace": 0.08})
    y = list(range(len(settings)))[::-1]
    for axis, whole, part, title, words in (
        (axes[0], total, draws, "Variance, baseline = 1", ("renders", "draws")),
        (axes[1], seconds, denoise, "Seconds, baseline = 1", ("upstream", "denoising")),
    ):
        rest = [w - p for w, p in zip(whole, part)]
        axis.barh(y, rest, color=BLUE, height=0.62, label=words[0])
        axis.barh(y, part, left=rest, color=ORANGE, height=0.62, label=words[1])
        axis.set_title(title)
        axis.legend(loc="upper right", bbox_to_anchor=(1.0, -0.12), ncol=2, fontsize=8.5, handlelength=1)
    ecm = [math.exp(x) for x in logs]
    axes[2].barh(y, ecm, color=GREEN, height=0.62)
    for place, value in zip(y, ecm):
        axes[2].text(value + 0.05, place, f"{value:.1f}", va="center", fontsize=9)
    axes[2].set_title("ECM: work for equal variance")
    axes[0].set_yticks(y, labels, fontsize=9)
    save(fig, "accounting")


def save(fig: Any, name: str) -> None:
    """To docs/images."""
    fig.savefig(DOCS / "images" / f"{name}.png", bbox_inches="tight", pad_inches=0.12)
    plt.close(fig)


def main() -> int:
    """Every image."""
    plt.rcParams.update(STYLE)
    torch.set_num_threads(1)
    (DOCS / "images").mkdir(exist_ok=True)
    scene = Scene()
    for draw in (reuse, importance, strata, pairs):
        draw(scene)
    accounting()
    correlations()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
