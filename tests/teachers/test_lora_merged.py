"""Adapters as `peft` saves them, added to the weights as it merges them (`recorded/`, by `record_lora.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from carv_3d.teachers.load import load_teacher
from carv_3d.teachers.lora_files import add_loras

FOLDER = Path(__file__).with_name("recorded")
CASES = ("peft", "rank-stabilized", "kohya")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_the_weights_are_those_that_peft_merges(case: str, scale: float, sd_folder: Path) -> None:
    teacher = load_teacher(str(sd_folder), device="cpu")
    parts = {"unet": teacher.unet, "text_encoder": teacher.text_encoder}
    modules = {
        f"{part} {name.removeprefix('text_model.')}": m
        for part, whole in parts.items()
        for name, m in whole.named_modules()
    }  # transformers 5 gave up the prefix
    recorded = load_file(FOLDER / "merged.safetensors")
    before, after = (
        {key.removeprefix(f"{kind} "): value for key, value in recorded.items() if key.startswith(f"{kind} ")}
        for kind in ("before", case)
    )
    assert len(before) > 6
    with torch.no_grad():
        for name, value in before.items():
            modules[name].weight.copy_(value)
    others = {
        f"{part} {k.removeprefix('text_model.')}": v.clone()
        for part, whole in parts.items()
        for k, v in whole.state_dict().items()
    }
    add_loras(parts, [f"{FOLDER / case}.safetensors:{scale}"], "StableDiffusionPipeline")
    for part, whole in parts.items():
        for key, value in whole.state_dict().items():
            name = f"{part} {key.removeprefix('text_model.')}"
            layer = name.removesuffix(".weight")
            if layer in after:
                due = before[layer] + scale * (after[layer] - before[layer])
                assert (after[layer] - before[layer]).abs().max() > 0.05
                torch.testing.assert_close(value, due, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            else:
                assert torch.equal(value, others[name]), name


class Prefixed(torch.nn.Module):
    """CLIP with the names that transformers 4 gives its layers."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.text_model, self.config = model, model.config


@pytest.mark.parametrize("case", CASES)
def test_layers_are_known_with_the_prefix_of_older_versions_too(case: str, sd_folder: Path) -> None:
    plain, older = (load_teacher(str(sd_folder), device="cpu") for _ in range(2))
    bare = getattr(older.text_encoder, "text_model", older.text_encoder)
    file = str(FOLDER / f"{case}.safetensors")
    add_loras({"unet": plain.unet, "text_encoder": plain.text_encoder}, [file], "StableDiffusionPipeline")
    add_loras({"unet": older.unet, "text_encoder": Prefixed(bare)}, [file], "StableDiffusionPipeline")
    for (name, value), other in zip(plain.text_encoder.state_dict().items(), older.text_encoder.state_dict().values()):
        assert torch.equal(value, other), name
