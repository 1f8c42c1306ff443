"""What threestudio's own guidances gave, as data: the inputs of each case and its gradients, for a tiny model.

`record_parity.py` writes the files in `recorded/` where threestudio is; `test_recorded_parity.py` reads them where it
is not. The model is not stored: its weights come from numpy's RandomState, whose stream never changes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "recorded"
TENSORS, FACTS = FOLDER / "stock.safetensors", FOLDER / "stock.json"
STEP = 400
SCALE = 20.0
LORA_LOSSES = ("loss_lora", "loss_train_phi")
CLOSE = 1e-4
"""Relative. threestudio's loss rounds its gradient to the last bits of the latents."""
ONE_DRAW = {"num_draws": 1, "proposal": "uniform", "stratify": "none"}

OPTIONS: dict[str, dict[str, Any]] = {
    "sds": {},
    "uniform": {"weighting_strategy": "uniform"},
    "fantasia3d": {"weighting_strategy": "fantasia3d"},
    "sjc": {"use_sjc": True},
    "sjc without var_red": {"use_sjc": True, "var_red": False},
    "sds without var_red": {"var_red": False},
    "image loss": {"use_img_loss": True},
    "image loss, clipped": {"use_img_loss": True, "grad_clip": 0.05},
    "clipped": {"grad_clip": 0.5},
    "clipped on a schedule": {"grad_clip": [0, 0.25, 1.0, 1000]},
    "annealed": {"min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0.9, 0.6, 1000]},
    "square root": {"sqrt_anneal": True, "max_step_percent": [0.9, 0.6, 1000], "trainer_max_steps": 800},
    "one prompt for all views": {"view_dependent_prompting": False},
}
CASES = [(name, "images") for name in OPTIONS]
CASES += [(name, "latents") for name in ("sds", "sjc", "clipped")]
CASES += [(name, "perp-neg") for name in OPTIONS if name not in ("annealed", "one prompt for all views")]
CASES += [("sjc", "perp-neg latents")]
"""(options, what is given). Perp-Neg has one view: threestudio's is wrong for more."""

VSD_OPTIONS: dict[str, dict[str, Any]] = {
    "vsd": {},
    "vsd, scale of the LoRA": {"guidance_scale_lora": 2.5},
    "vsd, mvp": {"camera_condition_type": "mvp", "lora_cfg_training": False},
    "vsd, image loss": {"use_img_loss": True},
    "vsd, clipped": {"grad_clip": 0.1},
    "vsd, three samples of the LoRA": {"lora_n_timestamp_samples": 3},
}


def fill(name: str, *shape: int) -> Tensor:
    """Numbers in [-1, 1) that depend on the name and the shape alone, on every platform."""
    source = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy((source.random_sample(shape) * 2 - 1).astype(np.float32))


def write_model(build: Callable[..., Path], folder: Path, prediction_type: str = "epsilon") -> Path:
    """A model by `build` (tests/small_models.py:build_sd_folder) with the weights of `fill`.

    Latents are 8 x 8, images 16 x 16.
    """
    build(folder, context=24)
    fill_weights(folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": prediction_type}))
    return folder


def fill_weights(folder: Path, parts: Sequence[str] = ("unet", "vae"), prefix: str = "") -> None:
    """Give the parts of a model the weights of `fill`, under names with a prefix."""
    for part in parts:
        file = weights_file(folder, part)
        save_file({name: weight(prefix + name, old) for name, old in load_file(file).items()}, file, {"format": "pt"})


def weights_file(folder: Path, part: str) -> Path:
    """The one file of weights in a part of a model's folder."""
    (file,) = (folder / part).glob("*.safetensors")
    return file


def fingerprint(folder: Path, parts: Sequence[str] = ("unet", "vae")) -> str:
    """SHA-256 of the names and weights of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        for name, weight in sorted(load_file(weights_file(folder, part)).items()):
            digest.update(f"{part} {name} {tuple(weight.shape)}".encode() + weight.numpy().tobytes())
    return digest.hexdigest()


def weight(name: str, old: Tensor) -> Tensor:
    """A parameter of that name in place of `old`, near 1 in what it gives; whole numbers stay."""
    if not old.is_floating_point():
        return old
    if old.dim() > 1:
        return fill(name, *old.shape) * (3.0 / old[0].numel()) ** 0.5
    return 0.1 * fill(name, *old.shape) + float("norm" in name and name.endswith("weight"))


def views(n: int) -> dict[str, Tensor]:
    """Elevation, azimuth and distance of n renders, as threestudio's batches have them."""
    azimuth = torch.tensor([30.0, 100.0, -150.0])[:n]
    return {"elevation": torch.full((n,), 15.0), "azimuth": azimuth, "camera_distances": torch.full((n,), 1.8)}


def render(given: str) -> Tensor:
    """What a case gives as rendered, (B, H, W, 3) or latents (B, h, w, 4), of other sizes than the model's."""
    shape = (12, 12, 3) if "latents" not in given else (6, 6, 4)
    return ((fill("render", 1 if "perp-neg" in given else 2, *shape) + 1) / 2).requires_grad_()


def gaussian(name: str, *shape: int) -> Tensor:
    """Noise of mean 0 and variance 1, nearly Gaussian, as `fill` repeatable."""
    return fill(name, *shape, 12).sum(-1) / 2.0


def timesteps(name: str, low: int, high: int, n: int) -> Tensor:
    """n timesteps of low .. high, (n,)."""
    u = (fill(name, n).double() + 1) / 2
    return (low + (u * (high - low + 1)).long()).clamp(max=high)


def gradients(out: dict[str, Any], rgb: Tensor) -> dict[str, Tensor]:
    """By the name of each loss but the LoRA's, its gradient with respect to the render."""
    losses = {name: loss for name, loss in out.items() if name.startswith("loss_") and name not in LORA_LOSSES}
    return {name: torch.autograd.grad(loss, rgb, retain_graph=True)[0] for name, loss in losses.items()}


def deal(estimator: Any, t: Tensor, eps: Tensor) -> None:
    """Has `estimator` draw t (R, K) by its own proposal, and eps (R, K, ...)."""
    design = estimator.design
    assert (estimator.proposal.name, design.stratify, design.antithetic) == ("uniform", "none", False)

    def draw_u(R: int, K: int, *_: Any) -> Tensor:
        assert t.shape == (R, K)
        low, high = estimator.proposal.min_step, estimator.proposal.max_step
        return (t.double() - low + 0.5) / (high - low + 1)

    def draw_eps(R: int, K: int, *_: Any) -> Tensor:
        assert t.shape == (R, K)
        return eps

    object.__setattr__(design, "draw_u", draw_u)
    object.__setattr__(design, "draw_eps", draw_eps)


def set_posterior(monkeypatch: Any, vae: Any, noise: Tensor) -> None:
    """Has the VAE sample mean + std * noise."""
    kind = type(vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean + self.std * noise)


def one_draw_guidance(host: Any, kind: str, folder: Path, **options: Any) -> Any:
    """A guidance of the extension that draws as threestudio's own, at the step of the recording."""
    cfg = {"pretrained_model_name_or_path": str(folder), "half_precision_weights": False}
    guidance = host.modules[kind]({**cfg, **ONE_DRAW, **options})
    guidance.update_step(0, STEP)
    return guidance


def check_gradients(
    case: str, out: dict[str, Any], rgb: Tensor, facts: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Asserts that the losses of a case have the recorded gradients, norm and range of timesteps."""
    own, got = facts["cases"][case], gradients(out, rgb)
    assert {f"{case}: {name}" for name in got} == {name for name in tensors if name.startswith(f"{case}: ")}
    for name, gradient in got.items():
        expected = tensors[f"{case}: {name}"]
        size = float(expected.abs().max())
        assert size > 0
        assert float((gradient - expected).norm() / expected.norm()) < CLOSE, name
        # of single numbers: where oneDNN has AVX2 alone, rounding makes 1.01e-4 of what AVX-512 recorded
        assert float((gradient - expected).abs().max()) < 2 * CLOSE * size, name
    assert (out["min_step"], out["max_step"]) == (own["min_step"], own["max_step"])
    assert abs(out["grad_norm"] - own["grad_norm"]) <= CLOSE * own["grad_norm"]


def along(gradient: Tensor, name: str) -> float:
    """The inner product of a parameter's gradient with a fixed direction."""
    return float((gradient.double() * fill(f"{name} direction", *gradient.shape)).sum())


class RecordedPrompts:
    """What threestudio's own prompt processor gave for `views`, as it gave it."""

    def __init__(self, tensors: dict[str, Tensor], n: int, perp_neg: bool = False) -> None:
        self._tensors, self._n, self.use_perp_neg = tensors, n, perp_neg

    def _check(self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> None:
        given = {"elevation": elevation, "azimuth": azimuth, "camera_distances": camera_distances}
        assert all(torch.equal(given[name], value) for name, value in views(self._n).items())

    def get_text_embeddings(
        self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor, view_dependent_prompting: bool
    ) -> Tensor:
        """(2B, L, D), text first."""
        self._check(elevation, azimuth, camera_distances)
        return self._tensors[f"text {self._n} {view_dependent_prompting}"]

    def get_text_embeddings_perp_neg(
        self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor, view_dependent_prompting: bool
    ) -> tuple[Tensor, Tensor]:
        """(4B, L, D), the negatives interleaved by item, and their weights (B, 2)."""
        self._check(elevation, azimuth, camera_distances)
        assert view_dependent_prompting
        return self._tensors["perp-neg text"], self._tensors["perp-neg weights"]


def facts(file: Path = FACTS) -> dict[str, Any]:
    """The numbers of a recording."""
    return json.loads(file.read_text())
