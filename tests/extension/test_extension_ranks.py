"""The extension on two processes, in a host double."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import host_double as double


def _one_rank(rank: int, folder: str, store: str, answers: Any) -> None:
    """Build the guidance before the process group exists, as systems do that build it in `configure`; then draw."""
    with pytest.MonkeyPatch.context() as patch:
        modules = double.install(patch).modules
        guidance = modules["carv-stable-diffusion-guidance"](
            {"pretrained_model_name_or_path": folder, "seed": 5, "num_draws": 2, "proposal": "uniform",
             "stratify": "global", "min_step_percent": 0.0, "max_step_percent": 1.0}
        )  # fmt: skip
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
        images = torch.full((4, 16, 16, 3), 0.5)
        batch = {name: torch.zeros(4) for name in ("elevation", "azimuth", "camera_distances")}
        utils = double.PromptUtils(torch.zeros(4, 20, 16), torch.zeros(4, 20, 16))
        seen = []
        teacher = guidance._carv.teacher._teacher
        teacher.eps_hat = lambda z, t, text: seen.append(t) or torch.zeros_like(z)
        guidance(images, utils, **batch)
        state = guidance.carv_state() if rank == 0 else None
        shared = [state]
        torch.distributed.broadcast_object_list(shared)
        guidance.load_carv_state(shared[0])  # what rank 0 saved comes back on both
        noise = torch.randn(3, generator=guidance._carv.generator)
        answers.put((rank, torch.cat([t[: len(t) // 2] for t in seen]).tolist(), noise.tolist()))
        torch.distributed.destroy_process_group()


def test_two_processes_share_the_strata_and_not_the_noise(sd_folder: Path, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    both = [
        context.Process(target=_one_rank, args=(rank, str(sd_folder), str(tmp_path / "store"), answers))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    try:
        found = {rank: rest for rank, *rest in (answers.get(timeout=400) for _ in both)}
    finally:
        for process in both:
            process.join(timeout=60)
            process.kill()
    timesteps = sorted(found[0][0] + found[1][0])
    assert len(timesteps) == 16  # 2 ranks x 4 renders x 2 draws
    assert [int(t / 1000 * 16) for t in timesteps] == list(range(16))
    assert sorted(found[0][0]) != sorted(found[1][0])
    assert found[0][1] != found[1][1]
