"""`benchmarks/gpu.py`: what it measures, that it resumes, ends in time, and notes what failed. Parts have stand-ins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu
import gpu_page
import gpu_parts
import huggingface_hub
import pytest

from carv_3d.errors import CarvError
from carv_3d.io.structured import read_csv

Calls = list[tuple[str, str, float]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """(model, part, seconds) of each call of a part; stand-ins take no time, and those of variance fail."""
    seen: Calls = []

    def stand_in(name: str) -> Any:
        def part(model: str, plan: Any, seconds: float, work: Path) -> list[dict[str, Any]]:
            seen.append((model, name, seconds))
            if name == "variance":
                raise CarvError("there is no scene")
            if name == "convergence":
                raise RuntimeError("CUDA out of memory")
            return [{"K": 1, "step_s": 0.5}] if name == "steps" else [{"line": "| stock | 1 |"}]

        return part

    monkeypatch.setattr(gpu, "PARTS", {name: stand_in(name) for name in gpu.SHARES})
    return seen


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    gpu.main()


def test_the_time_is_shared_out_and_what_fails_is_noted(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(monkeypatch, "--hours", "1", "--work", str(tmp_path / "w"))
    assert [name for _, name, _ in calls] == ["steps", "variance", "convergence", "threestudio"]
    # nothing takes time here: of 3600 s the first gets 1 of 10 shares, the second 3 of 9, then 5 of 6, and all
    assert [seconds for *_, seconds in calls] == pytest.approx([360, 1200, 3000, 3600], abs=5)
    page = (tmp_path / "w" / "gpu.md").read_text()
    assert "| 1 | 500.0 | 1.00 | — |" in page
    assert "Not measured: there is no scene" in page
    assert "Not measured: memory ran out: CUDA out of memory" in page
    rows, _ = read_csv(tmp_path / "w" / "figures.csv")
    assert {"model": "carv-tiny", "part": "steps", "row": "0", "column": "step_s", "value": "0.5"} in rows


def test_what_is_measured_is_not_measured_again(calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--parts", "steps", "--work", str(tmp_path))
    run(monkeypatch, "--parts", "steps,threestudio", "--work", str(tmp_path))
    assert [name for _, name, _ in calls] == ["steps", "threestudio"]


def test_a_stopped_part_is_resumed_with_its_own_seconds(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*_: Any) -> Any:
        raise gpu_parts.StoppedError("stopped")

    parts = dict(gpu.PARTS)
    monkeypatch.setattr(gpu, "PARTS", {**parts, "steps": stopped})
    with pytest.raises(CarvError, match="stopped"):
        run(monkeypatch, "--parts", "steps", "--hours", "2", "--work", str(tmp_path))
    monkeypatch.setattr(gpu, "PARTS", parts)
    run(monkeypatch, "--parts", "steps", "--hours", "1", "--work", str(tmp_path))
    assert [seconds for *_, seconds in calls] == pytest.approx([7200], abs=5)


def test_other_failures_are_not_hidden(calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(gpu, "PARTS", {**gpu.PARTS, "steps": broken})
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(monkeypatch, "--parts", "steps", "--work", str(tmp_path))


@pytest.mark.parametrize("words", [["--hours=0"], ["--parts=step"], ["--prompts=6"], ["--models=nowhere/x"]])
def test_a_mistake_ends_it_before_anything_is_measured(
    words: list[str], calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CarvError):
        run(monkeypatch, *words, "--work", str(tmp_path / "w"))
    assert not calls
    assert not (tmp_path / "w").exists()


def test_a_folder_of_models_stands_for_each(sd_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(sd_folder)
    assert gpu.find_models([str(tmp_path), "carv-tiny"]) == [str(tmp_path / "a"), str(tmp_path / "b"), "carv-tiny"]
    assert gpu.find_models([str(sd_folder)]) == [str(sd_folder)]


SMALL = (
    "data.width=8", "data.height=8", "system.renderer.num_samples_per_ray=4", "system.geometry.n_levels=2",
    "system.geometry.log2_hashmap_size=8", "data.eval_width=8", "data.eval_height=8", "data.n_test_views=2",
)  # fmt: skip


def test_steps_are_timed_by_phase_and_a_large_k_says_that_memory_ran_out(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = gpu_parts.TextTo3D.train_step

    def limited(self: Any) -> Any:
        if self.config.system.guidance.num_draws > 2:
            raise RuntimeError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(gpu_parts.TextTo3D, "train_step", limited)
    monkeypatch.setattr(gpu_parts, "PROMPTS", ("mug",))
    rows = gpu_parts.steps(str(sd_folder), gpu_parts.Plan((1, 2, 4, 8), 1, SMALL), 0.0, tmp_path)
    assert [row["K"] for row in rows] == [1, 2, 4]  # nothing larger is tried after that
    assert rows[2] == {"K": 4, "note": "memory ran out"}
    for row in rows[:2]:
        assert row["repeats"] == 2
        assert 0 < row["denoise_s"] + row["render_s"] < row["step_s"]
        assert "peak_GiB" not in row  # of a CPU it would be the process's
    assert "| 4 | memory ran out |" in gpu_page.page([("m", "steps", {"rows": rows})], "here")


def test_the_commands_are_asked_for_the_models_scene_and_the_time(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(gpu_parts, "run", lambda request: asked.append(request) or 130)
    monkeypatch.setattr(gpu_parts, "run_sweep", lambda sweep, *_: asked.append(sweep) or 130)
    plan = gpu_parts.Plan((1, 4, 32), 3, ("data.width=8",))
    for part in (gpu_parts.variance, gpu_parts.convergence):
        with pytest.raises(gpu_parts.StoppedError):  # 130: a signal
            part(str(sd_folder), plan, 480.0, tmp_path / "new")
    request, sweep = asked
    model = f"system.guidance.pretrained_model_name_or_path={sd_folder}"
    assert (request.budget, request.R, request.K, request.at) == (480.0, (1, 2), (1, 4), (20, 100))
    assert list(request.overrides) == sweep.common == [model, "data.width=8"]
    assert not request.resume
    assert (len(sweep.prompts), sweep.budget) == (3, pytest.approx(480 / gpu_parts.OVERHEAD / 6))
    assert [m.overrides[0].rpartition("=")[2] for m in sweep.methods] == ["1", "4"]


@pytest.mark.slow
def test_variance_and_convergence_give_the_rows_of_their_tables(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The commands themselves, in a scene of 8 x 8 and with prompts that the small model can read."""
    monkeypatch.setattr(gpu_parts, "PROMPTS", ("mug", "cup"))
    plan = gpu_parts.Plan((1, 2), 2, (*SMALL, "trainer.max_steps=4", "system.exporter.resolution=8"))
    variance = gpu_parts.variance(str(sd_folder), plan, 0.1, tmp_path / "variance")
    assert {(row["method"], row["R"], row["K"]) for row in variance} >= {("uniform", "2", "1"), ("is+strat", "1", "2")}
    rows = gpu_parts.convergence(str(sd_folder), plan, 1.0, tmp_path / "convergence")
    assert {row["method"] for row in rows if row["table"] == "final"} == {"baseline", "carv"}
    results = [("m", "variance", {"rows": variance}), ("m", "convergence", {"rows": rows})]
    page = gpu_page.page(json.loads(json.dumps(results)), "here")
    assert "| 2 | is+strat | (1, 2) | 2 |" in page
    assert "| carv | 2 |" in page


def test_threestudio_needs_a_checkout_and_its_failure_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = gpu_parts.Plan((1,), 1, ())
    monkeypatch.delenv("CARV_THREESTUDIO", raising=False)
    with pytest.raises(CarvError, match="CARV_THREESTUDIO"):
        gpu_parts.threestudio("carv-tiny", plan, 1.0, tmp_path)
    monkeypatch.setenv("CARV_THREESTUDIO", str(tmp_path))
    with pytest.raises(CarvError, match=r"threestudio\.py (ended with|did not end)"):
        gpu_parts.threestudio("carv-tiny", plan, 60.0, tmp_path)
