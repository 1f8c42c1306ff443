"""The classifier: a small network that names object, color, material and view of one image.

It stands in for CLIP R-precision without a download. It is trained on renders of its own, with other cameras and seeds
than the teacher's, all combinations and strong augmentation. It never guides anything.
``python -m carv_3d.tiny.classifier`` trains it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carv_3d.errors import CarvError
from carv_3d.io.structured import RESTORE
from carv_3d.io.tensor_files import load_tensors
from carv_3d.scenes.view_phrases import FINE_PHRASES, OVERHEAD, view_phrase
from carv_3d.tiny.autoencoder import light_backgrounds
from carv_3d.tiny.vocabulary import COLORS, MATERIALS, OBJECTS

if TYPE_CHECKING:  # rendering needs numba, scoring does not
    from carv_3d.tiny.render import Shot

VIEWS = (*FINE_PHRASES, OVERHEAD)
CLASSES = {"object": len(OBJECTS), "color": len(COLORS), "material": len(MATERIALS), "view": len(VIEWS)}
WEIGHTS = Path(__file__).parent / "classifier.safetensors"
IGNORE = -100


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.norm2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(F.avg_pool2d(x, 2)))


class Classifier(nn.Module):
    """Images ``(B, 3, 64, 64)`` in [0, 1] -> logits "object", "color", "material" and "view", each ``(B, n)``.

    The classes stand in the order of OBJECTS, COLORS, MATERIALS and VIEWS.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(_Block(24, 48), _Block(48, 96), _Block(96, 160))
        # a hidden layer, since where an object's left side shows depends on the object
        self.heads = nn.ModuleDict(
            {k: nn.Sequential(nn.Linear(160 * 4, 256), nn.ReLU(), nn.Linear(256, n)) for k, n in CLASSES.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        """``(B, 640)``: the last map pooled to 2×2, for the distances between sets of images."""
        x = self.blocks(F.relu(self.stem(2 * images - 1)))
        return F.adaptive_avg_pool2d(x, 2).flatten(1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class; differentiable in the images."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Classifier:
        """The trained classifier, frozen; CarvError where its weights are missing or damaged."""
        if not path.exists():
            raise CarvError(f"the classifier's weights {path} are missing; run python -m carv_3d.tiny.classifier")
        classifier = cls()
        weights = load_tensors(path, RESTORE)
        try:
            classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        except RuntimeError as error:
            raise CarvError(f"the classifier's weights {path} are damaged; {RESTORE}") from error
        return classifier.eval().requires_grad_(False)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(N, 3, H, W)`` shifted, scaled, blurred, noisy, brighter or darker: their classes stay."""
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    scale = uniform(0.85, 1.2)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-0.12, 0.12), uniform(-0.12, 0.12)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), False), padding_mode="border", align_corners=False)
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    share = uniform(0.0, 1.0)[:, None, None, None]
    x = share * x + (1 - share) * soft
    gain, bias = uniform(0.85, 1.12)[:, None, None, None], uniform(-0.05, 0.05)[:, None, None, None]
    noise = uniform(0.0, 0.06)[:, None, None, None] * torch.randn(x.shape, generator=generator)
    return ((x - 0.5) * gain + 0.5 + bias + noise).clamp(0, 1)


def train(work: Path, out: Path = WEIGHTS, images: int = 45_000, steps: int = 5_000, seed: int = 0) -> None:
    """Render other images than the teacher's, train the classifier on them, write ``out`` in half precision."""
    from safetensors.torch import save_file

    from carv_3d.tiny.dataset import build, source_hash
    from carv_3d.tiny.stage import StagePlan, run_stage

    data = build(work / "classifier", images, seed=seed + 2, training_only=False)
    labels = shot_classes(data.shots)
    torch.manual_seed(seed)
    classifier = Classifier()
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves this form out

    def step_loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(images, (64,), generator=generator)
        background = light_backgrounds(64, generator).numpy().astype(np.float32)
        x = torch.from_numpy(data.on(index.numpy(), background)).permute(0, 3, 1, 2).contiguous()
        logits = classifier(augment(x, generator).contiguous(memory_format=torch.channels_last))
        terms = [
            F.cross_entropy(logits[k], labels[index, i], ignore_index=IGNORE, label_smoothing=0.05)
            for i, k in enumerate(CLASSES)
        ]
        return torch.stack(terms).sum()

    made_with = {"images": images, "seed": seed, "objects": source_hash()}
    options = StagePlan(steps, lr=3e-3, seed=seed + 7, ema=0.99)
    weights = run_stage("classifier", classifier, step_loss, options, work, made_with)
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, out.with_suffix(".part"))
    out.with_suffix(".part").replace(out)


def shot_classes(shots: Sequence[Shot]) -> Tensor:
    """Classes (N, 4) in the order of CLASSES; IGNORE for the side of a round object, which no image can show."""
    from carv_3d.tiny.objects import ROUND

    names, colors, rows = list(OBJECTS), list(COLORS), []
    for s in shots:
        phrase = view_phrase(s.elevation, s.azimuth)
        view = IGNORE if s.obj in ROUND and phrase != OVERHEAD else VIEWS.index(phrase)
        rows.append([names.index(s.obj), colors.index(s.color), MATERIALS.index(s.material), view])
    return torch.tensor(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m carv_3d.tiny.classifier", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "carv_3d" / "tiny")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.threads) < 1:
        parser.exit(2, "--steps and --threads are whole numbers from 1.\n")
    from carv_3d.tiny.stage import run_command

    torch.set_num_threads(arguments.threads)
    run_command(parser, lambda: train(arguments.work, arguments.out, steps=arguments.steps))
