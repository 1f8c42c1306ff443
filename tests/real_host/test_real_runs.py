"""Training in a real threestudio: its launcher, datamodule, systems and Lightning's Trainer.

carv-magic3d-refine-sd is not among these: it rasterises with nvdiffrast, which needs CUDA.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cpu_host import EXTENSION

CONFIGS = EXTENSION / "configs"
STEPS = 20
PLAIN = {"K", "ess", "snr", "nonfinite", "grad_norm", "nfe", "renders", "seconds_denoise", "min_step", "max_step"}


NONE_OPAQUE = {"loss_z_variance"}
"""sdi-system's own mean over pixels of an opacity above 0.5, NaN where a scene guided by a random model has none."""


def launch(
    checkout: Path, config: str, steps: int, workdir: Path, *overrides: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    script, file = Path(__file__).with_name("cpu_host.py"), CONFIGS / f"{config}.yaml"
    return subprocess.run(
        [sys.executable, *map(str, (script, checkout, file, steps, workdir)), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,  # a rank that waits for another in vain fails the test; long, for a machine with other work
    )


def train(*arguments: Any, **variables: str) -> list[dict[str, Any]]:
    """What every step logged, of `launch`."""
    done = launch(*arguments, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def model(folder: Path) -> list[str]:
    sections = ("prompt_processor", "guidance")
    return [f"system.{name}.pretrained_model_name_or_path={folder}" for name in sections]


RUNS = {
    "carv-dreamfusion-tiny": 1, "carv-dreamfusion-sd": 1, "carv-perpneg-sd": 2, "carv-magic3d-coarse-sd": 1,
    "carv-sjc": 1, "carv-latentnerf": 1, "carv-dreamfusion-sdxl": 1, "carv-prolificdreamer-vsd": 1,
    "carv-hifa": 1, "carv-sdi": 1,
}  # fmt: skip
"""Configurations that run without CUDA, and the renders of a step."""


@pytest.mark.parametrize("config", RUNS)
def test_a_shipped_configuration_trains(
    config: str, checkout: Path, sd_folder_512: Path, xl_folder: Path, tmp_path: Path
) -> None:
    given = [] if config == "carv-dreamfusion-tiny" else model(sd_folder_512)
    if config == "carv-dreamfusion-sdxl":
        given = model(xl_folder)
    if config == "carv-prolificdreamer-vsd":  # one UNet is both, so 8 rows and 4 of the LoRA, and 4 to train it
        given.append(f"system.guidance.pretrained_model_name_or_path_lora={sd_folder_512}")
        given += ["data.batch_size=1", "data.resolution_milestones=[]"]  # renders are 16² all along
    small = ["system.geometry.grid_size=[16,16,16]"] if config == "carv-sjc" else []
    steps = train(checkout, config, STEPS, tmp_path / "run", *given, *small)
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    renders = RUNS[config]
    per_draw = {"carv-perpneg-sd": 4, "carv-prolificdreamer-vsd": 4}.get(config, 2)
    for i, record in enumerate(steps, start=1):
        logged = record["logged"]
        assert set(logged) >= PLAIN
        odd = {name for name, value in logged.items() if not math.isfinite(value)}
        assert odd <= NONE_OPAQUE, {name: logged[name] for name in odd}
        assert (logged["K"], logged["nonfinite"]) == (4.0, 0.0)
        nfe = 4 * (11 + 4) if config == "carv-sdi" else renders * 4 * per_draw  # an inversion of 11, with Perp-Neg
        assert (logged["renders"], logged["nfe"]) == (i * renders, i * nfe)
        assert 1.0 <= logged["ess"] <= 4.0 * renders + 1e-6
        assert ("seconds_encode" in logged) == (config not in ("carv-sjc", "carv-latentnerf"))
        assert ("seconds_decode" in logged) == (config == "carv-hifa")
    if config == "carv-dreamfusion-tiny":
        # the schedule follows the steps
        falls = [980 - 29 * i for i in range(STEPS)]
        assert [record["logged"]["max_step"] for record in steps] == pytest.approx(falls, abs=1)
    images = sorted((tmp_path / "run" / "outputs").rglob("*.png"))
    assert images, "threestudio's own test views"


def kinds(value: Any) -> set[str]:
    """The names of the types in nested dicts and lists."""
    if isinstance(value, (dict, list, tuple)):
        inner = value.values() if isinstance(value, dict) else value
        return set().union(*map(kinds, inner))
    return {type(value).__name__}


def test_a_resumed_run_has_the_state_of_an_adaptive_proposal(threestudio: Any, checkout: Path, tmp_path: Path) -> None:
    config = "carv-dreamfusion-tiny"
    options = ["system.guidance.proposal=adaptive", "system.guidance.seed=3", "use_timestamp=false", "tag=one"]
    options += ["checkpoint.every_n_train_steps=4", "system.guidance.max_step_percent=0.98"]
    train(checkout, config, 4, tmp_path / "run", *options)
    (saved,) = (tmp_path / "run" / "outputs").rglob("last.ckpt")
    import torch

    checkpoint = torch.load(saved, map_location="cpu", weights_only=False)
    assert checkpoint["carv_guidance"]["rank"] == 0
    assert kinds(checkpoint["carv_guidance"]) <= {"Tensor", "int", "float", "str", "bool", "NoneType"}
    assert not any(key.startswith("guidance") for key in checkpoint["state_dict"])
    resumed = train(checkout, config, 6, tmp_path / "run", *options, f"resume={saved}")
    assert [record["step"] for record in resumed] == [5, 6]
    whole = train(checkout, config, 6, tmp_path / "whole", *options)
    # the renders differ (threestudio seeds its cameras anew); timesteps come from the guidance's own generator
    afresh = train(checkout, config, 2, tmp_path / "afresh", *options)
    assert resumed[0]["logged"]["ess"] == pytest.approx(whole[4]["logged"]["ess"], rel=1e-6)
    assert resumed[0]["logged"]["ess"] != pytest.approx(afresh[0]["logged"]["ess"], rel=1e-4)


@pytest.mark.parametrize("system", ["dreamfusion-system", "dreamfusion-system:carv-checkpoint"])
def test_a_checkpoint_with_a_list_of_the_configuration_resumes(system: str, checkout: Path, tmp_path: Path) -> None:
    """With the mixin the list becomes a plain one, without it torch is given the types of such lists."""
    config = "carv-dreamfusion-tiny"
    options = ["use_timestamp=false", "tag=one", "checkpoint.every_n_train_steps=1", f"system_type={system}"]
    options += ["system.optimizer.params.geometry.lr=0.01", "system.optimizer.params.geometry.betas=[0.9,0.99]"]
    train(checkout, config, 1, tmp_path / "run", *options)
    (saved,) = (tmp_path / "run" / "outputs").rglob("last.ckpt")
    resumed = train(checkout, config, 2, tmp_path / "run", *options, f"resume={saved}")
    assert [record["step"] for record in resumed] == [2]


TWO = {"CARV_TEST_DEVICES": "2"}
GLOBAL = ("system.guidance.stratify=global", "system.guidance.proposal=uniform")


def test_two_ranks_share_the_strata_and_agree(checkout: Path, tmp_path: Path) -> None:
    steps = train(checkout, "carv-dreamfusion-tiny", 3, tmp_path / "run", *GLOBAL, **TWO)
    by_rank = [[record for record in steps if record["rank"] == rank] for rank in (0, 1)]
    for first, second in zip(*by_rank, strict=True):
        assert first["step"] == second["step"]
        assert first["parameters"] == second["parameters"]
        low, high = first["logged"]["min_step"], first["logged"]["max_step"] + 1
        strata = sorted(int((t - low) / (high - low) * 8) for t in (*first["t"], *second["t"]))
        assert strata == list(range(8))  # 2 ranks, 1 render each, 4 draws
    assert [record["step"] for record in by_rank[0]] == [1, 2, 3]


@pytest.mark.parametrize(("mishap", "nonfinite"), [("nan", 4.0), ("memory", 0.0)])
def test_a_rank_without_a_draw_or_short_of_memory_does_not_stop_the_other(
    mishap: str, nonfinite: float, checkout: Path, tmp_path: Path
) -> None:
    steps = train(
        checkout, "carv-dreamfusion-tiny", 3, tmp_path / "run", *GLOBAL, CARV_TEST_MISHAP=f"{mishap}:2", **TWO
    )
    records = {(record["rank"], record["step"]): record for record in steps}
    assert sorted(records) == [(rank, step) for rank in (0, 1) for step in (1, 2, 3)]
    assert records[1, 2]["logged"]["nonfinite"] == nonfinite
    assert records[0, 2]["logged"]["nonfinite"] == 0.0
    assert all(records[0, step]["parameters"] == records[1, step]["parameters"] for step in (1, 2, 3))
    assert records[0, 3]["parameters"] != records[0, 2]["parameters"]


@pytest.mark.parametrize("mishap", ["kill", "no-memory"])
def test_a_lost_rank_ends_the_run_with_a_sentence(mishap: str, checkout: Path, tmp_path: Path) -> None:
    done = launch(
        checkout, "carv-dreamfusion-tiny", 3, tmp_path / "run", *GLOBAL, CARV_TEST_MISHAP=f"{mishap}:2", **TWO
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith(("carv: ", "[rank: 1] Child process"))]
    assert any("another process of this run ended" in line or "terminated with code" in line for line in said)
    if mishap == "no-memory":
        assert any("memory ran out on one sample of the teacher" in line for line in said)
    assert max(record["step"] for record in map(json.loads, done.stdout.splitlines())) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("system.guidance.num_draws=0", "num_draws is 0; it must be a whole number from 1 to 2^40, or auto"),
        ("system.guidance.num_drawz=4", "guidance has no option 'num_drawz'; did you mean num_draws?"),
        ("system.guidance.pretrained_model_name_or_path=./nowhere", "there is no such folder"),
    ],
)
def test_a_mistake_ends_the_run_with_a_sentence(override: str, said: str, checkout: Path, tmp_path: Path) -> None:
    done = launch(checkout, "carv-dreamfusion-tiny", 1, tmp_path / "run", override)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("carv: ")]
    assert said in sentence
