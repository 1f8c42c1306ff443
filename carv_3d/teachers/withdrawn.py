"""Models that were withdrawn from the Hugging Face hub, and their mirrors. No torch is imported here."""

from __future__ import annotations

from pathlib import Path

from carv_3d.io.files import expanded

GONE = {
    **{
        f"stabilityai/stable-diffusion-{version}": ("November 2025", f"sd2-community/stable-diffusion-{version}")
        for version in ("2", "2-base", "2-1", "2-1-base")
    },
    "runwayml/stable-diffusion-v1-5": ("August 2024", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
}
"""When each was withdrawn, and the public mirror (never taken unasked)."""


def out_of_reach(name: str, folder: Path | None = None) -> bool:
    """Whether a model's name is a withdrawn one of which there is no copy on this machine.

    Args:
        name: as an option gives it.
        folder: where relative paths begin; the working directory if None.
    """
    if name not in GONE or ((folder or Path()) / expanded(name)).is_dir():
        return False
    import huggingface_hub

    parts = ("model_index.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json")
    return not any(isinstance(huggingface_hub.try_to_load_from_cache(name, part), str) for part in parts)
