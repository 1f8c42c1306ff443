"""Records what `peft` itself makes of its adapters, for `test_lora_merged.py`.

    python tests/teachers/record_lora.py

needs peft (0.21 wrote what is there) next to the packages of the tests. Two files of adapters are written in PEFT's and
kohya's names, and one with the weights of their layers before and after `merge_adapter`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import _pack_dict_with_prefix
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_models import build_sd_folder

FOLDER = Path(__file__).with_name("recorded")
TARGETS = {
    "unet": r"mid_block.*(to_q|to_out\.0|proj_in|ff\.net\.0\.proj|conv1)",
    "text_encoder": r".*layers\.0\.(self_attn\.q_proj|mlp\.fc1)",
}
CASES: dict[str, dict[str, Any]] = {
    "peft": {"r": 2, "lora_alpha": 6},
    "rank-stabilized": {"r": 3, "lora_alpha": 2, "use_rslora": True},
    "kohya": {"r": 2, "lora_alpha": 1},
}


def weights(module: Any, layers: list[str]) -> dict[str, Tensor]:
    named = dict(module.named_modules())
    return {layer: getattr(named[layer], "base_layer", named[layer]).weight.detach().clone() for layer in layers}


def record(case: str, folder: Path) -> dict[str, Tensor]:
    """Writes the adapters; returns the weights before and after, by their names in the pipeline."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
    out, states, metadata = {}, {}, {}
    g = torch.Generator().manual_seed(list(CASES).index(case))
    for part, target in TARGETS.items():
        config = LoraConfig(target_modules=target, init_lora_weights=False, **CASES[case])
        model = inject_adapter_in_model(config, getattr(pipeline, part))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.copy_(0.3 * torch.randn(value.shape, generator=g))
        layers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
        states[part] = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
        metadata[part] = config.to_dict()
        before = weights(model, layers)
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        for layer, value in weights(model, layers).items():
            out[f"before {part} {layer}"], out[f"{case} {part} {layer}"] = before[layer], value
    file = FOLDER / f"{case}.safetensors"
    if case == "kohya":
        packed: dict[str, Tensor] = {}
        for part, state in states.items():
            packed |= _pack_dict_with_prefix(state, part)
        renamed = {key: value.contiguous() for key, value in convert_state_dict_to_kohya(packed).items()}
        alpha = float(CASES[case]["lora_alpha"])
        alphas = {f"{name}.alpha": torch.tensor(alpha) for name in {key.split(".")[0] for key in renamed}}
        save_file({**renamed, **alphas}, file)
    else:
        StableDiffusionPipeline.save_lora_weights(
            str(FOLDER), unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
            weight_name=file.name, unet_lora_adapter_metadata=metadata["unet"],
            text_encoder_lora_adapter_metadata=metadata["text_encoder"],
        )  # fmt: skip
    return out


def main() -> None:
    """All of it."""
    with tempfile.TemporaryDirectory() as place:
        folder = build_sd_folder(Path(place) / "model")
        tensors = {name: value for case in CASES for name, value in record(case, folder).items()}
    save_file(tensors, FOLDER / "merged.safetensors")
    for file in FOLDER.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
