"""`carv doctor MODEL`: what a folder holds, what was understood of it, and what it needs; or why it is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carv_3d.cli.finding import Finding
from carv_3d.errors import CarvError, first_line, shown

BYTES = {"float32": 4, "half": 2}
TENSORS = 24  # of the network's widest level that live at once; a rough number


def model_files(words: Sequence[str]) -> dict[str, Any]:
    """What the options among a model's files are set to.

    Raises:
        CarvError: another option, or a value that it cannot have.
    """
    from carv_3d.config.reader import read_options, read_words
    from carv_3d.guidance.options import GuidanceOptions

    options = GuidanceOptions()
    for word in words:
        if word.partition("=")[0] not in options.model_files:
            raise CarvError(f"{shown(word)} is no option of carv doctor, which takes {', '.join(options.model_files)}")
    return read_options(options, read_words(words, options)).model_files


def examine(model: str, num_draws: int = 1, precision: str = "float32", **files: Any) -> list[Finding]:
    """All findings, in the order in which they are shown; the model is loaded for the last, where it fits.

    Args:
        model: "carv-tiny", a folder, or a hub id that is on this machine.
        num_draws: K of the memory's estimate.
        precision: "float32" or "half", of the same.
        **files: as `model_files` gives them.
    """
    from carv_3d.core.memory import short_amount
    from carv_3d.teachers.load import find_model
    from carv_3d.teachers.loading import load_schedule
    from carv_3d.teachers.model_folder import read_json, weight_files
    from carv_3d.teachers.single_file import single_file

    try:
        folder, family = find_model(model, local_files_only=True, model_config=files.get("model_config"))
    except CarvError as error:
        return [Finding("model", False, f"refused: {error}", "", True)]
    schedule = load_schedule(folder)
    vae = read_json(folder / "vae" / "config.json") if "vae" in family.classes else {}
    file = single_file(model)
    if file is not None:
        parts = {"all in one file,": _on_disk([file])}
    else:
        parts = {part: _on_disk(weight_files(folder, part)) for part in family.classes if (folder / part).is_dir()}
    numbers = sum(count for count, _ in parts.values())
    kinds = ", ".join(f"{part} {kind}" for part, (_, kind) in parts.items())
    network = read_json(folder / family.network / "config.json")
    needed = numbers * BYTES[precision] + _activations(network, vae, num_draws) // family.packed * BYTES[precision]
    findings = [
        Finding("model", True, f"{family.name} in {folder}", "", True),
        Finding("schedule", True, f"{schedule.family}, {schedule.num_train_timesteps} timesteps"),
        Finding("prediction", True, str(schedule.prediction_type)),
        Finding("VAE", True, _scaling(vae) if vae else "none: the latents are pixels in [-1, 1]"),
        Finding("on disk", True, f"{numbers:,} parameters ({kinds})"),
        Finding("memory", True, f"about {short_amount(needed)} at K = {num_draws} in {precision}, a rough estimate"),
    ]
    return [*findings, _self_test(model, numbers * 4, family, folder, files)]


def _scaling(vae: dict[str, Any]) -> str:
    if vae.get("latents_mean") is not None:
        return f"{vae.get('latent_channels', 4)} channels, each with its latents_mean and latents_std"
    from carv_3d.teachers.model_config import SCALING

    scaling, shift = vae.get("scaling_factor") or SCALING, vae.get("shift_factor") or 0.0
    return f"{vae.get('latent_channels', 4)} channels, scaling_factor {scaling:.5g}, shift_factor {shift:.5g}"


def _on_disk(files: list[Path]) -> tuple[int, str]:
    """How many numbers files have, and their types; those of a pickle by its size, as float32."""
    from carv_3d.io.tensor_files import read_header
    from carv_3d.teachers.model_folder import MEND

    count, kinds = 0, set()
    for file in files:
        if file.suffix == ".safetensors":
            heads = read_header(file, MEND).values()
            count += sum(math.prod(head.shape) for head in heads)
            kinds |= {head.dtype for head in heads}
        else:
            count, kinds = count + file.stat().st_size // 4, kinds | {"pickle"}
    return count, "/".join(sorted(kinds))


def _activations(network: dict[str, Any], vae: dict[str, Any], num_draws: int) -> int:
    """Numbers that live at once while 2 K samples, text and uncond, are denoised."""
    from carv_3d.teachers.model_config import vae_factor

    size = network.get("sample_size") or vae.get("sample_size", 1024) // vae_factor(vae)
    size = (size[0] if isinstance(size, list) else size) // network.get("patch_size", 1)
    if "block_out_channels" in network:
        width = network["block_out_channels"][0]
    else:
        width = network.get("num_attention_heads", 16) * network.get("attention_head_dim", 64)
    return int(2 * num_draws * size**2 * width * TENSORS)


def _self_test(model: str, size: int, family: Any, folder: Path, files: dict[str, Any]) -> Finding:
    from carv_3d.core.memory import amount, free_memory
    from carv_3d.guidance.self_test import LEVELS, noise_errors, percentages
    from carv_3d.teachers.load import teacher_class

    free = free_memory()
    if free is not None and size > free:
        return Finding("self-test", False, f"not tried: loading takes {amount(size)}, and {amount(free)} are free")
    try:
        errors = noise_errors(teacher_class(family).load(model, folder=folder, **files))
    except (CarvError, RuntimeError, MemoryError) as error:
        why = str(error) if isinstance(error, CarvError) else first_line(error)  # the fix stands at its end
        return Finding("self-test", False, f"the model does not run: {why}", "", True)
    good = all(error < 1 for error in errors)
    levels = ", ".join(map(str, LEVELS))
    state = f"its error in the noise is {percentages(errors)} of that of predicting zero, at t/T = {levels}"
    return Finding("self-test", good, state, "its files may be misread or untrained: try it in its own pipeline")
