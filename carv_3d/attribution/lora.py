"""Gradients of low-rank adapters alone, for models whose every parameter is too much (arXiv 2106.09685).

A branch `up(down(x))` stands parallel to each layer and adds nothing to the model: its own value is taken off again.
What is left is its gradient,

    out = layer(x) + b(x') - stop(b(x')),    b(x) = scale up(down(x)),    x' = stop(x)

so that d out / d up and d out / d down are those of the layer `W + scale up down`, at whatever W is.

Two kinds. Of adapters that were trained (FILE.safetensors): W is the model with them in it, and the gradients are of
their matrices, as D-TRAK takes them of a Stable Diffusion that was fine-tuned so (arXiv 2311.00500). Of `fresh` ones:
`up` is zero and `down` random, so the gradient of `down` is zero and that of `up` is the layer's own, projected from
one side, `dL/dW down^T` (LoGra, arXiv 2405.13954, projects from both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.attribution.model import GradientModel
from carv_3d.core.seeds import keyed_generator
from carv_3d.errors import CarvError
from carv_3d.runs.checkpoint import module_fingerprint
from carv_3d.teachers.load import find_model, load_teacher
from carv_3d.teachers.lora import ATTENTION_LAYERS
from carv_3d.teachers.lora_files import Adapter, read_adapters, read_lora
from carv_3d.teachers.model_folder import read_json

FRESH = "fresh"
FIX = "name a LoRA of this model as --lora FILE.safetensors:SCALE, or --lora fresh"


class LoraBranches(nn.Module):
    """The branches of a network's layers, in float32; the network is no submodule of it.

    Attributes:
        lora: layer -> its `down` and `up`, with "/" for the dots of the layer's name.
    """

    def __init__(self, network: nn.Module, adapters: dict[str, list[Adapter]]) -> None:
        """adapters: of each layer of the network by name, which stay on it for good."""
        super().__init__()
        self.lora = nn.ModuleDict()
        layers = dict(network.named_modules())
        for name, several in adapters.items():
            for number, adapter in enumerate(several):
                branch = _Branch(layers[name], adapter)
                self.lora[f"{name.replace('.', '/')}/{number}"] = branch
                layers[name].register_forward_hook(branch.hook)


class _Branch(nn.Module):
    def __init__(self, layer: Any, adapter: Adapter) -> None:
        super().__init__()
        rank, device = len(adapter.down), layer.weight.device
        self.factor = adapter.factor
        if isinstance(layer, nn.Linear):
            self.down: nn.Module = nn.Linear(layer.in_features, rank, False, device)
            self.up: nn.Module = nn.Linear(rank, layer.out_features, False, device)
        else:
            size, like = layer.kernel_size, (layer.stride, layer.padding, layer.dilation)
            self.down = nn.Conv2d(layer.in_channels, rank, size, *like, bias=False, device=device)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device=device)
        with torch.no_grad():
            for part, value in ((self.down, adapter.down), (self.up, adapter.up)):
                part.weight.copy_(value.view(part.weight.shape))  # type: ignore[operator]

    def hook(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        branch = self.factor * self.up(self.down(inputs[0].detach().to(torch.float32)))
        return output + (branch - branch.detach()).to(output.dtype)


def load_with_lora(name: str, loras: Sequence[str], rank: int, seed: int) -> tuple[Any, GradientModel]:
    """A teacher and its model for gradients, of the adapters' parameters alone.

    Args:
        name: of the model, as of `load_teacher`.
        loras: FILE.safetensors or FILE.safetensors:SCALE each, which are part of the model from here on; or `fresh`
            alone.
        rank: of fresh ones.
        seed: of fresh ones.

    Raises:
        CarvError: what `load_teacher` raises, a file without adapters of the network, `fresh` next to files, and a
            network without attention layers to put fresh ones on.
    """
    fresh = FRESH in loras
    if fresh and len(loras) > 1:
        raise CarvError(f"lora is {', '.join(loras)}; fresh adapters stand alone; {FIX}")
    teacher = load_teacher(name) if fresh else load_teacher(name, loras=list(loras))
    network = teacher.network
    adapters = _fresh(network, rank, seed) if fresh else _trained(name, network, loras)
    branches = LoraBranches(network, adapters)
    whole = GradientModel.from_teacher(teacher)
    factors = {layer: [adapter.factor for adapter in several] for layer, several in adapters.items()}
    config = {**whole.config, "network": module_fingerprint(network), "lora": factors}
    return teacher, GradientModel(branches, whole.schedule, whole.predict, whole.target, whole.name, config)


def _fresh(network: nn.Module, rank: int, seed: int) -> dict[str, list[Adapter]]:
    """On the linear layers of attention, as diffusers' scripts train them; `down` is normal, of deviation 1 / rank."""
    adapters: dict[str, list[Adapter]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(ATTENTION_LAYERS):
            down = torch.randn(rank, layer.in_features, generator=keyed_generator(seed, "lora", name)) / rank
            adapters[name] = [Adapter(down, torch.zeros(layer.out_features, rank), 1.0)]
    if not adapters:
        raise CarvError(f"the network has no linear layers {', '.join(ATTENTION_LAYERS)} to put adapters on; {FIX}")
    return adapters


def _trained(name: str, network: nn.Module, loras: Sequence[str]) -> dict[str, list[Adapter]]:
    folder, family = find_model(name)
    pipeline, known = str(read_json(folder / "model_index.json").get("_class_name")), {family.network: network}
    layers = dict(network.named_modules())
    adapters: dict[str, list[Adapter]] = {}
    for text in loras:
        path, scale = read_lora(text)
        for (part, layer), adapter in read_adapters(path, pipeline, known).items():
            if part == family.network and isinstance(layers.get(layer), (nn.Linear, nn.Conv2d)):
                scaled = adapter._replace(factor=scale * adapter.factor)
                adapters.setdefault(layer, []).append(scaled)
    if not adapters:
        raise CarvError(f"{', '.join(loras)} changes the text encoders alone, and gradients are of the network; {FIX}")
    return adapters
