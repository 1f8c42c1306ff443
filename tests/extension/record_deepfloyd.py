"""Records what threestudio's own `deep-floyd-guidance` gives, for `test_deep_floyd.py`.

    PYTHON tests/extension/record_deepfloyd.py CHECKOUT

PYTHON has threestudio's packages. Only the size that threestudio writes out (64) is exchanged for the tiny model's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from record_parity import Recorder
from torch import Tensor

import cpu_host  # isort: skip
import recorded_parity as recorded  # isort: skip
from small_families import T5_WIDTH, build_family  # isort: skip

SIZE = 16
OPTIONS: dict[str, dict[str, Any]] = {
    "sds": {},
    "uniform": {"weighting_strategy": "uniform"},
    "fantasia3d": {"weighting_strategy": "fantasia3d"},
    "another scale": {"guidance_scale": 7.5},
    "clipped": {"grad_clip": 0.5},
    "clipped on a schedule": {"grad_clip": [0, 0.25, 1.0, 1000]},
    "annealed": {"min_step_percent": [0, 0.5, 0.1, 1000], "max_step_percent": [0.9, 0.6, 1000]},
    "one prompt for all views": {"view_dependent_prompting": False},
}
CASES = [(name, "images") for name in OPTIONS]
CASES += [(name, "perp-neg") for name in OPTIONS if name not in ("annealed", "one prompt for all views")]


class DeepFloydRecorder(Recorder):
    """threestudio with its DeepFloyd guidance at the tiny model's size."""

    parts = ("unet",)

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.host = cpu_host.enter(checkout)
        self.model = str(build_family("DeepFloyd IF", folder / "model"))
        recorded.fill_weights(Path(self.model), self.parts)
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"weights": recorded.fingerprint(Path(self.model), self.parts), "cases": {}}
        from threestudio.models.guidance import deep_floyd_guidance

        proxy = types.ModuleType("functional")
        vars(proxy).update(vars(torch.nn.functional))
        proxy.interpolate = self.interpolate  # type: ignore[attr-defined]
        deep_floyd_guidance.F = proxy

    @staticmethod
    def interpolate(x: Tensor, size: tuple[int, int], **more: Any) -> Tensor:
        assert size == (64, 64)
        return torch.nn.functional.interpolate(x, (SIZE, SIZE), **more)


def record_texts(recorder: Recorder, width: int) -> None:
    """What threestudio's own prompt processors give, of text that is filled in."""
    from threestudio.models.prompt_processors.base import PromptProcessor, hash_prompt

    class Filled(PromptProcessor):
        @staticmethod
        def spawn_func(model: str, prompts: list[str], cache_dir: str) -> None:
            for prompt in prompts:
                file = os.path.join(cache_dir, f"{hash_prompt(model, prompt)}.pt")
                torch.save(recorded.fill(prompt, 6, width), file)

    cfg = {"pretrained_model_name_or_path": recorder.model, "prompt": "a mug", "negative_prompt": "bad", "spawn": False}
    plain, perp_neg = Filled(cfg)(), Filled({**cfg, "use_perp_neg": True})()
    for n in (1, 2):
        for by_view in (True, False):
            text = plain.get_text_embeddings(*recorded.views(n).values(), by_view)
            recorder.tensors[f"text {n} {by_view}"] = text
    text, weights = perp_neg.get_text_embeddings_perp_neg(*recorded.views(1).values(), True)
    recorder.tensors.update({"perp-neg text": text, "perp-neg weights": weights})


@contextlib.contextmanager
def drawn(t: Tensor, noise: Tensor) -> Iterator[None]:
    """Within it, threestudio draws these timesteps and this noise first; what follows is drawn anew."""
    noises, randn_like = [noise], torch.randn_like

    def draw(x: Tensor) -> Tensor:
        return noises.pop() if noises else randn_like(x)

    with mock.patch.object(torch, "randint", side_effect=[t]), mock.patch.object(torch, "randn_like", draw):
        yield


def record_gradients(recorder: Recorder) -> None:
    """Score distillation, case by case."""
    for name, given in CASES:
        case = f"{name}, {given}"
        guidance = recorder.stock("deep-floyd-guidance", **OPTIONS[name])
        rgb = recorded.render(given)
        n = len(rgb)
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, n)
        utils = recorded.RecordedPrompts(recorder.tensors, n, "perp-neg" in given)
        with drawn(t, recorded.gaussian("eps", n, 3, SIZE, SIZE)):
            out = guidance(rgb, utils, **recorded.views(n))
        recorder.keep(case, out, rgb, t=t.tolist(), options=OPTIONS[name])


def record_previews(recorder: Recorder) -> None:
    """The noisy images of `guidance_eval`; what follows them is drawn anew."""
    guidance = recorder.stock("deep-floyd-guidance", max_items_eval=1)
    utils = recorded.RecordedPrompts(recorder.tensors, 2)
    rgb = recorded.render("images").detach()
    with drawn(torch.tensor([67, 500]), recorded.gaussian("eps", 2, 3, SIZE, SIZE)):
        out = guidance(rgb, utils, guidance_eval=True, **recorded.views(2))["eval"]
    recorder.tensors["previews: imgs_noisy"] = out["imgs_noisy"]
    shapes = {name: list(value.shape) for name, value in out.items() if isinstance(value, Tensor)}
    levels = [float(level) for level in out["noise_levels"]]
    recorder.facts["previews"] = {"bs": out["bs"], "texts": out["texts"], "noise_levels": levels, "shapes": shapes}


def main() -> None:
    """Record everything and write the two files."""
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recorder = DeepFloydRecorder(checkout, Path(folder))
        recorder.facts["deep-floyd-guidance"] = vars(recorder.host.find("deep-floyd-guidance").Config())
        record_texts(recorder, T5_WIDTH)
        record_gradients(recorder)
        record_previews(recorder)
        recorder.write(recorded.FOLDER / "deepfloyd.safetensors", recorded.FOLDER / "deepfloyd.json")


if __name__ == "__main__":
    main()
