"""Doubles of other people's loops: their interface as this project wrote it down, filled with a patch's added lines.

Each double is a text with marks `#@ FILE N`, which the lines replace that hunk N of FILE adds. None of it is the
repositories' own code. The model is linear, so that the expected gradient is known exactly.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

PATCHES = Path(__file__).resolve().parents[1] / "examples" / "hosts"
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


class LinearUNet:
    """eps_hat = a(t) z_t + b(t) c for a text of mean c; counts its samples."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.samples: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        assert len(z_t) == len(t) == len(encoder_hidden_states)
        self.samples.append(len(z_t))
        a, b = self.factors(t)
        c = encoder_hidden_states.mean((1, 2))
        wave = torch.linspace(-1, 1, z_t[0].numel()).view(z_t[0].shape)
        return SimpleNamespace(sample=a * z_t + (b * c.view(-1, 1, 1, 1)) * wave)

    @staticmethod
    def factors(t: Tensor) -> tuple[Tensor, Tensor]:
        """a(t) and b(t), (N, 1, 1, 1)."""
        share = t.view(-1, 1, 1, 1).float() / 1000
        return 0.2 + 0.5 * share, 1 - 0.7 * share


class Host(nn.Module):
    """What the loops' guidance classes share: a schedule, a range of timesteps, an encoder of images (B, 3, 4, 4)."""

    def __init__(self, num_train_timesteps: int = 1000) -> None:
        super().__init__()
        self.device, self.dtype, self.precision_t = torch.device("cpu"), torch.float32, torch.float32
        self.num_train_timesteps, self.alphas = num_train_timesteps, ALPHAS
        self.min_step, self.max_step = 20, 980
        self.unet, self.encoded = LinearUNet(), 0

    def encode_imgs(self, images: Tensor) -> Tensor:
        """(B, 3, 4, 4) -> (B, 4, 2, 2)."""
        self.encoded += 1
        mix = torch.linspace(-1, 1, 12).view(4, 3)
        return torch.einsum("dc,bchw->bdhw", mix, nn.functional.avg_pool2d(2 * images - 1, 2)).tanh()


STABLE_DREAMFUSION = """
import argparse
import torch
from host_loops import Host, perp_neg as weighted_perpendicular_aggregator
#@ guidance/sd_utils.py 0
class StableDiffusion(Host):
    def __init__(self):
        super().__init__()
        #@ guidance/sd_utils.py 1
    def train_step(self, text_embeddings, pred_rgb, guidance_scale=100, as_latent=False, grad_scale=1,
                   save_guidance_path=None):
        latents = pred_rgb * 2 - 1 if as_latent else self.encode_imgs(pred_rgb)
        #@ guidance/sd_utils.py 2
        return "stock"
    def train_step_perpneg(self, text_embeddings, weights, pred_rgb, guidance_scale=100, as_latent=False,
                           grad_scale=1, save_guidance_path=None):
        latents = pred_rgb * 2 - 1 if as_latent else self.encode_imgs(pred_rgb)
        #@ guidance/sd_utils.py 3
        return "stock"
    #@ guidance/sd_utils.py 4
def main(args):
    parser = argparse.ArgumentParser()
    #@ main.py 0
    opt = parser.parse_args(args)
    guidance = {"SD": StableDiffusion()}
    #@ main.py 1
    return guidance["SD"]
"""

DREAMGAUSSIAN = """
import torch
from host_loops import Host
#@ guidance/sd_utils.py 0
class StableDiffusion(Host):
    def __init__(self):
        super().__init__()
        self.embeddings = {}
        #@ guidance/sd_utils.py 1
    def train_step(self, pred_rgb, step_ratio=None, guidance_scale=100, as_latent=False, vers=None, hors=None):
        B = len(pred_rgb)
        latents = pred_rgb * 2 - 1 if as_latent else self.encode_imgs(pred_rgb)
        with torch.no_grad():
            if step_ratio is None:
                t = torch.randint(self.min_step, self.max_step + 1, (B,))
            else:
                t = torch.full((B,), min(max(round((1 - step_ratio) * 1000), self.min_step), self.max_step))
            embeddings = torch.cat([self.embeddings[side].expand(B, -1, -1) for side in ("pos", "neg")])
            #@ guidance/sd_utils.py 2
            return "stock"
    #@ guidance/sd_utils.py 3
class GUI:
    def __init__(self, opt):
        self.opt, self.guidance_sd = opt, StableDiffusion()
        #@ main.py 0
def main(args):
    return GUI(dict(args)).guidance_sd
"""

NERFSTUDIO = """
import torch
from dataclasses import dataclass
from torch import Tensor
from host_loops import Host
#@ nerfstudio/generative/stable_diffusion.py 0
class StableDiffusion(Host):
    def __init__(self, device, num_train_timesteps=1000, version="1-5"):
        super().__init__(num_train_timesteps)
        #@ nerfstudio/generative/stable_diffusion.py 1
    def sds_loss(self, text_embeddings, image, guidance_scale=100.0, grad_scaler=None):
        latents = self.encode_imgs(image)
        #@ nerfstudio/generative/stable_diffusion.py 2
        return "stock"
    #@ nerfstudio/generative/stable_diffusion.py 3
@dataclass
class GenerfactoModelConfig:
    #@ nerfstudio/models/generfacto.py 0
    sd_version: str = "1-5"
class GenerfactoModel:
    def __init__(self, config):
        self.config, self.diffusion_device, self.sd_version = config, "cpu", config.sd_version
        self._diffusion_model = StableDiffusion(self.diffusion_device, version=self.sd_version)
        #@ nerfstudio/models/generfacto.py 1
def main(args):
    return GenerfactoModel(GenerfactoModelConfig(**args))._diffusion_model
"""

DOUBLES = {"stable-dreamfusion": STABLE_DREAMFUSION, "dreamgaussian": DREAMGAUSSIAN, "nerfstudio": NERFSTUDIO}


def perp_neg(delta: Tensor, weights: Tensor, batch_size: int) -> Tensor:
    """arXiv 2304.04968, equation 8, of M predictions less the unconditional one (M N, ...), weights (M N,)."""
    first, *others = delta.split(batch_size)
    total = first
    for other, w in zip(others, weights.split(batch_size)[1:]):
        along = (other * first).sum((1, 2, 3), keepdim=True) / first.square().sum((1, 2, 3), keepdim=True)
        total = total + w.view(-1, 1, 1, 1) * (other - along * first)
    return total


def hunks(name: str) -> dict[tuple[str, int], str]:
    """The lines that a patch adds, by file and number of the hunk."""
    added: dict[tuple[str, int], str] = {}
    file, number = "", -1
    for line in (PATCHES / f"{name}.patch").read_text().splitlines():
        if line.startswith("+++ "):
            file, number = line.removeprefix("+++ b/"), -1
        elif line.startswith("@@"):
            number += 1
            added[file, number] = ""
        elif line.startswith("+"):
            added[file, number] += line[1:] + "\n"
    return added


def double(name: str) -> dict[str, Any]:
    """The names of the double with the patch's lines in it; an AssertionError for a hunk that it has no place for."""
    left, lines = hunks(name), []
    for line in DOUBLES[name].splitlines():
        mark, _, what = line.partition("#@ ")
        if what:
            file, number = what.rsplit(" ", 1)
            line = textwrap.indent(textwrap.dedent(left.pop((file, int(number)))), mark)
        lines.append(line)
    assert not left, f"the double has no place for {list(left)}"
    names: dict[str, Any] = {"__name__": f"double of {name}"}
    exec(compile("\n".join(lines), f"{name}.patch", "exec", dont_inherit=True), names)
    return names
