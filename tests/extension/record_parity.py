"""Records what threestudio's own guidances give, for `test_recorded_parity.py`.

    PYTHON tests/extension/record_parity.py CHECKOUT [--stock-draws 4000]

PYTHON has threestudio's packages, with diffusers below 0.20: its variational guidance runs on nothing newer.
Only the sizes that threestudio writes out (512 and 64) are exchanged for the tiny model's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "real_host")]
import cpu_host  # noqa: E402
import recorded_parity as recorded  # noqa: E402
from small_models import build_sd_folder  # noqa: E402

from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher  # noqa: E402

LAYERS = ("to_q", "to_k", "to_v", "to_out")


class Recorder:
    """threestudio, the models, and what has been recorded so far."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.host = cpu_host.enter(checkout)
        self.model = str(recorded.write_model(build_sd_folder, folder / "model"))
        self.v_model = str(recorded.write_model(build_sd_folder, folder / "v", "v_prediction"))
        cpu_host.resize_like(StableDiffusionTeacher.load(self.model, device="cpu", with_text=False))
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"weights": recorded.fingerprint(Path(self.model)), "cases": {}}

    def stock(self, kind: str, **options: Any) -> Any:
        """threestudio's guidance, its options as from a YAML file."""
        from omegaconf import OmegaConf

        cfg = {"pretrained_model_name_or_path": self.model, "half_precision_weights": False, **options}
        guidance = self.host.find(kind)(OmegaConf.create(cfg))
        guidance.update_step(0, recorded.STEP)
        return guidance

    def keep(self, case: str, out: dict[str, Any], rgb: Tensor, **more: Any) -> None:
        """The gradients of a case, its gradient's norm and range of timesteps."""
        for name, gradient in recorded.gradients(out, rgb).items():
            self.tensors[f"{case}: {name}"] = gradient
        shown = {"grad_norm": out["grad_norm"].item(), "min_step": out["min_step"], "max_step": out["max_step"]}
        self.facts["cases"][case] = {**shown, **more}

    def write(self, tensors: Path, facts: Path) -> None:
        """The two files, with the versions of what made them."""
        import diffusers

        versions = {"threestudio": self.host, "torch": torch, "diffusers": diffusers}
        self.facts["made with"] = {name: package.__version__ for name, package in versions.items()}
        tensors.parent.mkdir(exist_ok=True)
        save_file({name: x.detach().contiguous().clone() for name, x in self.tensors.items()}, tensors)
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self.facts.items())
        facts.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@contextlib.contextmanager
def drawn(guidance: Any, t: Sequence[Tensor], noise: Sequence[Tensor], posterior: Tensor) -> Iterator[None]:
    """Within it, threestudio draws these timesteps and noises one after the other, and this posterior sample."""
    kind = type(guidance.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist)
    with (
        mock.patch.object(kind, "sample", lambda self, generator=None: self.mean + self.std * posterior),
        mock.patch.object(torch, "randint", side_effect=t),
        mock.patch.object(torch, "randn_like", side_effect=noise),
    ):
        yield


def record_texts(recorder: Recorder) -> None:
    """What threestudio's own prompt processor gives."""
    cfg = {"pretrained_model_name_or_path": recorder.model, "prompt": "a mug", "negative_prompt": "bad", "spawn": False}
    processor = recorder.host.find("stable-diffusion-prompt-processor")
    plain, perp_neg = processor(cfg)(), processor({**cfg, "use_perp_neg": True})()
    for n in (1, 2):
        for by_view in (True, False):
            text = plain.get_text_embeddings(*recorded.views(n).values(), by_view)
            recorder.tensors[f"text {n} {by_view}"] = text
    text, weights = perp_neg.get_text_embeddings_perp_neg(*recorded.views(1).values(), True)
    recorder.tensors.update({"perp-neg text": text, "perp-neg weights": weights})


def record_gradients(recorder: Recorder) -> None:
    """Score distillation and score Jacobian chaining, case by case."""
    for name, given in recorded.CASES:
        case = f"{name}, {given}"
        guidance = recorder.stock("stable-diffusion-guidance", guidance_scale=recorded.SCALE, **recorded.OPTIONS[name])
        rgb = recorded.render(given)
        n = len(rgb)
        eps, posterior = (recorded.gaussian(kind, n, 4, 8, 8) for kind in ("eps", "posterior"))
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, n)
        utils = recorded.RecordedPrompts(recorder.tensors, n, "perp-neg" in given)
        with drawn(guidance, [t], [eps], posterior):
            out = guidance(rgb, utils, rgb_as_latents="latents" in given, **recorded.views(n))
        recorder.keep(case, out, rgb, t=t.tolist())


def record_previews(recorder: Recorder) -> None:
    """The noisy images of `guidance_eval`; what follows them is drawn anew."""
    guidance = recorder.stock("stable-diffusion-guidance", guidance_scale=recorded.SCALE)
    eps, t = recorded.gaussian("eps", 1, 4, 8, 8), torch.tensor([67])
    utils = recorded.RecordedPrompts(recorder.tensors, 1)
    z = recorded.render("latents")[:1].detach()
    with drawn(guidance, [t], [eps], eps):
        out = guidance(z, utils, rgb_as_latents=True, guidance_eval=True, **recorded.views(1))["eval"]
    recorder.tensors["previews: imgs_noisy"] = out["imgs_noisy"]
    shapes = {name: list(value.shape) for name, value in out.items() if isinstance(value, Tensor)}
    levels = [float(level) for level in out["noise_levels"]]
    recorder.facts["previews"] = {"bs": out["bs"], "texts": out["texts"], "noise_levels": levels, "shapes": shapes}


def record_mean(recorder: Recorder, draws: int) -> None:
    """The mean of many of its gradients, along its own direction and seven others, with standard errors."""
    guidance = recorder.stock("stable-diffusion-guidance", guidance_scale=recorded.SCALE)
    guidance.update_step(0, 0)
    guidance.decode_latents = lambda latents: torch.zeros(1)  # decoded in every step and not used here
    utils = recorded.RecordedPrompts(recorder.tensors, 2)
    z = recorded.gaussian("latents", 2, 8, 8, 4).requires_grad_()
    torch.manual_seed(1)
    samples = []
    for _ in range(draws):
        out = guidance(z, utils, rgb_as_latents=True, **recorded.views(2))
        samples.append(torch.autograd.grad(out["loss_sds"], z)[0].flatten().double())
    first = draws // 5  # chooses the direction, and is not looked at again
    others = recorded.fill("directions", 7, z.numel()).double()
    directions = torch.cat([torch.stack(samples[:first]).mean(0, keepdim=True), others])
    directions = directions / directions.norm(dim=1, keepdim=True)
    x = torch.stack(samples[first:]) @ directions.T
    recorder.tensors["mean: directions"] = directions.float()
    recorder.facts["mean"] = {"mean": x.mean(0).tolist(), "error": (x.std(0) / len(x) ** 0.5).tolist()}


def record_vsd(recorder: Recorder) -> None:
    """Variational score distillation: gradients on the render, the LoRA's loss and gradient."""
    from diffusers.models.embeddings import TimestepEmbedding
    from threestudio.models.guidance import stable_diffusion_vsd_guidance as module

    # it writes out 1280 for the width of the time embedding
    module.TimestepEmbedding = lambda a, b: TimestepEmbedding(a, 32)
    module.random = mock.Mock(random=lambda: 0.5)  # no camera is dropped
    views = {**recorded.views(2), "c2w": recorded.fill("c2w", 2, 4, 4), "mvp_mtx": recorded.fill("mvp_mtx", 2, 4, 4)}
    for case, options in recorded.VSD_OPTIONS.items():
        guidance = recorder.stock(
            "stable-diffusion-vsd-guidance", pretrained_model_name_or_path_lora=recorder.v_model, **options
        )
        parameters = fill_lora(guidance.unet_lora, guidance.camera_embedding.module)
        rgb = recorded.render("images")
        n = options.get("lora_n_timestamp_samples", 1)
        t = recorded.timesteps(case, guidance.min_step, guidance.max_step, 2)
        t_lora = recorded.timesteps(f"{case} lora", 0, 999, n * 2)
        noises = [recorded.gaussian("eps", 2, 4, 8, 8), recorded.gaussian("eps lora", n * 2, 4, 8, 8)]
        utils = recorded.RecordedPrompts(recorder.tensors, 2)
        with drawn(guidance, [t, t_lora], noises, recorded.gaussian("posterior", 2, 4, 8, 8)):
            out = guidance(rgb, utils, **views)
        gradients = torch.autograd.grad(out["loss_lora"], list(parameters.values()))
        products = {name: recorded.along(g, name) for name, g in zip(parameters, gradients)}
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        recorder.keep(case, out, rgb, t=t.tolist(), t_lora=t_lora.tolist(), loss_lora=out["loss_lora"].item(),
                      lora_gradient=products, lora_norm=norm)  # fmt: skip


def fill_lora(unet: Any, embedding: Any) -> dict[str, Tensor]:
    """The LoRA's parameters by the names that they have in `carv_3d`, filled by those; embedding None for no camera."""
    parameters = {}
    for key, processor in unet.attn_processors.items():
        for layer in LAYERS:
            name = key.replace(".processor", f".{layer}" + (".0" if layer == "to_out" else "")).replace(".", "_")
            for side in ("up", "down"):
                parameters[f"layers.{name}.{side}.weight"] = getattr(getattr(processor, f"{layer}_lora"), side).weight
    linears = () if embedding is None else ((0, embedding.linear_1), (2, embedding.linear_2))
    for i, linear in linears:
        for side in ("weight", "bias"):
            parameters[f"camera_embedding.{i}.{side}"] = getattr(linear, side)
    for name, parameter in parameters.items():
        parameter.data = 0.3 * recorded.fill(name, *parameter.shape)
    return parameters


def main() -> None:
    """Record everything and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--stock-draws", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkout = options.checkout.resolve()
        os.chdir(folder)
        recorder = Recorder(checkout, Path(folder))
        for kind in ("stable-diffusion-guidance", "stable-diffusion-vsd-guidance"):
            recorder.facts[kind] = vars(recorder.host.find(kind).Config())
        record_texts(recorder)
        record_gradients(recorder)
        record_previews(recorder)
        record_mean(recorder, options.stock_draws)
        record_vsd(recorder)
        recorder.write(recorded.TENSORS, recorded.FACTS)


if __name__ == "__main__":
    main()
