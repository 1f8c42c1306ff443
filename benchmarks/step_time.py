"""Seconds of a step at K draws against K steps at one draw, interleaved in one run, with the parts of each.

    ./install.sh python benchmarks/step_time.py [--model FOLDER] [--config YAML] [--draws 8] [--repeats 15]

Without trained weights, --untrained times carv-tiny's architecture with random ones: the costs are the same.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench import script_parser

from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher


def untrained(folder: Path) -> Path:
    """carv-tiny's architecture with random weights, as a model folder."""
    from diffusers import AutoencoderKL

    from carv_3d.tiny import autoencoder, denoiser
    from carv_3d.tiny.export import export
    from carv_3d.tiny.tokens import END, START, build_tokenizer

    words = folder / "words"
    tokenizer = build_tokenizer(words)
    model = denoiser.Denoiser(len(tokenizer), *tokenizer.convert_tokens_to_ids([START, END]))
    vae = AutoencoderKL(**autoencoder.CONFIG)
    export(folder / "model", vae, 1.0, model, model.state_dict(), tokenizer, words)
    return folder / "model"


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="carv-tiny")
    parser.add_argument("--config", type=Path, help="the scene; the built-in settings without one")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        name = str(untrained(Path(scratch))) if options.untrained else options.model
        teacher = StableDiffusionTeacher.load(name)
        runs = {}
        for renders, draws in ((1, 1), (1, 2), (1, 4), (1, options.draws), (2, 1)):
            overrides = [f"data.batch_size={renders}", f"system.guidance.num_draws={draws}"]
            overrides += ["system.guidance.antithetic=false"]  # as K = 1 needs
            overrides += [f"system.guidance.pretrained_model_name_or_path={name}"]
            runs[renders, draws] = TextTo3D(load_config(options.config, overrides, "a red mug"), teacher)
        for run in runs.values():  # caches, lazy initialisation
            run.train_step()
            run.train_step()
        seconds: dict[tuple[int, int], list[float]] = {key: [] for key in runs}
        parts: dict[tuple[int, int], dict[str, float]] = {key: {} for key in runs}
        for _ in range(options.repeats):
            for key, run in runs.items():
                begin = time.perf_counter()
                run.train_step()
                seconds[key].append(time.perf_counter() - begin)
                for part, value in run.meter.seconds.items():
                    parts[key][part] = parts[key].get(part, 0.0) + value
    baseline = statistics.median(seconds[1, 1])
    print(f"\n{torch.get_num_threads()} threads, medians of {options.repeats} interleaved steps\n")
    print("| R | K | ms a step | against K steps at (1, 1) | " + " | ".join(f"{p} ms" for p in parts[1, 1]) + " |")
    print("|" + "---|" * (4 + len(parts[1, 1])))
    for (renders, draws), measured in seconds.items():
        middle = statistics.median(measured)
        each = " | ".join(f"{parts[renders, draws][p] / options.repeats * 1e3:.0f}" for p in parts[1, 1])
        print(f"| {renders} | {draws} | {middle * 1e3:.0f} | {middle / (baseline * renders * draws):.2f} | {each} |")


if __name__ == "__main__":
    main()
