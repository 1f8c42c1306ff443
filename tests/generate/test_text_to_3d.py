"""The embedded host: a resumed run is the uninterrupted one, and what each step sees, counts and leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_host import tiny_config

from carv_3d.config.reader import look_up, to_mapping
from carv_3d.core.auto_draws import MAX_RENDERS
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.scenes.cameras import orbit


@pytest.mark.parametrize("proposal", ["weight", "adaptive"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    proposal: str, sd_folder: Path, sd_teacher: Any, tmp_path: Path
) -> None:
    from carv_3d.runs.checkpoint import load_checkpoint, save_checkpoint

    config = tiny_config(sd_folder, f"system.guidance.proposal={proposal}", "trainer.max_steps=6")
    whole = TextTo3D(config, sd_teacher)
    for _ in range(6):
        last = whole.train_step()
    first = TextTo3D(config, sd_teacher)
    for _ in range(3):
        first.train_step()
    save_checkpoint(tmp_path / "c", first.state_dict())
    second = TextTo3D(config, sd_teacher)
    torch.rand(5)
    second.load_state_dict(load_checkpoint(tmp_path / "c")[0])
    assert second.step == 3
    for _ in range(3):
        resumed = second.train_step()
    for a, b in zip(whole.field.parameters(), second.field.parameters()):
        assert torch.equal(a, b)
    timings = {k for k in last if k.startswith("seconds")} | {"snr_step"}  # which needs the step before the stop
    assert {k: v for k, v in last.items() if k not in timings} == pytest.approx(
        {k: v for k, v in resumed.items() if k not in timings}, rel=0, abs=0, nan_ok=True
    )


def test_num_draws_auto_measures_the_run_and_is_logged(sd_folder: Path, sd_teacher: Any) -> None:
    config = tiny_config(sd_folder, "system.guidance.num_draws=auto", "trainer.max_steps=20")
    host = TextTo3D(config, sd_teacher)
    metrics = [host.train_step() for _ in range(12)]
    auto = host.guidance.auto
    assert auto is not None
    assert [m["K"] for m in metrics[5:10]] == [4, 16, 16, 16, 16]
    assert metrics[11]["K"] == metrics[10]["K_auto"] == auto.num_draws
    assert 0 <= metrics[11]["upstream_share"] <= 1
    assert metrics[7]["seconds_auto"] > 0 == metrics[11]["seconds_auto"]
    assert auto.variance(1) > auto.variance(16) > 0
    again = TextTo3D(config, sd_teacher)
    again.load_state_dict(host.state_dict())
    assert again.guidance.auto is not None
    assert again.guidance.auto.num_draws == auto.num_draws
    plain = TextTo3D(tiny_config(sd_folder), sd_teacher)
    assert plain.guidance.auto is None
    assert plain.guidance.estimator.meter is None


def test_a_time_per_step_is_filled_with_renders(sd_folder: Path, sd_teacher: Any) -> None:
    given = ["system.guidance.num_draws=auto", "trainer.step_seconds=1000", "data.batch_size=2"]
    host = TextTo3D(tiny_config(sd_folder, *given), sd_teacher)
    metrics = [host.train_step() for _ in range(11)]
    assert [m["renders"] for m in metrics[:10]] == [2 * n for n in range(1, 11)]
    assert metrics[9]["R_auto"] == MAX_RENDERS  # seconds enough for all of them
    assert metrics[10]["renders"] - metrics[9]["renders"] == MAX_RENDERS
    fixed = TextTo3D(tiny_config(sd_folder, given[0], given[2]), sd_teacher)  # resumed without a time
    fixed.load_state_dict(host.state_dict())
    assert fixed.train_step()["renders"] - metrics[10]["renders"] == 2
    assert "R_auto" not in TextTo3D(tiny_config(sd_folder, given[0]), sd_teacher).train_step()


def test_the_schedules_of_a_run_by_the_clock_stand_where_its_checkpoint_says(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder, "trainer.max_steps=80"), sd_teacher)
    host.train_step()
    assert host.now == host.step == 1
    host.progress = 0.75
    again = TextTo3D(tiny_config(sd_folder, "trainer.max_steps=80"), sd_teacher)
    again.load_state_dict(host.state_dict())
    assert again.now == host.now == 60
    assert again.step == 1
    assert again.train_step()["lr"] == pytest.approx(host.learning_rate(60))


def test_a_checkpoint_of_another_configuration_is_refused(sd_folder: Path, sd_teacher: Any) -> None:
    state = TextTo3D(tiny_config(sd_folder), sd_teacher).state_dict()
    other = TextTo3D(tiny_config(sd_folder, "system.geometry.resolution=9"), sd_teacher)
    with pytest.raises(CarvError, match="does not fit this configuration"):
        other.load_state_dict(state)


def test_the_learning_rate_falls_to_its_final_share(sd_folder: Path, sd_teacher: Any) -> None:
    overrides = ["trainer.max_steps=11", "system.optimizer.args.lr=0.1", "system.scheduler.final_factor=0.25"]
    host = TextTo3D(tiny_config(sd_folder, *overrides), sd_teacher)
    assert host.learning_rate(0) == pytest.approx(0.1)
    assert host.learning_rate(5) == pytest.approx(0.05)  # half way: the geometric mean
    assert host.learning_rate(10) == pytest.approx(0.025)
    assert host.learning_rate(99) == pytest.approx(0.025)


def test_backgrounds_are_white_or_light_in_their_shares(sd_folder: Path, sd_teacher: Any) -> None:
    overrides = ["random_probability=0.6", "random_min=0.5", "random_tint=0.2"]
    overrides = [f"system.background.{o}" for o in overrides]
    host = TextTo3D(tiny_config(sd_folder, *overrides), sd_teacher)
    colors = torch.stack([host._background(2) for _ in range(1000)])
    white = (colors == 1).flatten(1).all(dim=1)
    assert float(white.float().mean()) == pytest.approx(0.4, abs=4 * (0.24 / 1000) ** 0.5)
    assert 0.4 <= float(colors.min()) < 0.45
    assert float(colors[~white].mean()) == pytest.approx(0.75 * 0.9, abs=0.01)


def test_prompts_name_the_side_that_the_camera_sees(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    told = host.view_text(orbit(4, elevation=10.0))
    expected = [f"a red mug, {side} view" for side in ("front", "left", "back", "right")]
    assert torch.equal(told.text, sd_teacher.text_embeddings(expected))
    assert torch.equal(told.uncond, sd_teacher.text_embeddings([""]))
    assert told.negatives is None
    coarse = TextTo3D(tiny_config(sd_folder, "system.prompt_processor.fine_views=false"), sd_teacher)
    expected = [f"a red mug, {side} view" for side in ("front", "side", "back", "side")]
    assert torch.equal(coarse.view_text(orbit(4, elevation=10.0)).text, sd_teacher.text_embeddings(expected))


def test_work_is_counted(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder, "data.batch_size=3", "system.guidance.num_draws=2"), sd_teacher)
    host.train_step()
    metrics = host.train_step()
    assert metrics["renders"] == 2 * 3
    assert metrics["nfe"] == 2 * 3 * 2 * 2  # steps, renders, draws, text and unconditional
    phases = [metrics[f"seconds_{name}"] for name in ("render", "encode", "denoise", "backward")]
    assert min(phases) > 0
    assert sum(phases) < metrics["seconds"]


def test_a_gradient_that_is_not_finite_is_left_out_and_then_ends_the_run(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.generate.trainer.MAX_BAD_STEPS", 2)
    host = TextTo3D(tiny_config(sd_folder, "system.loss.lambda_sds=1.0e+38"), sd_teacher)
    before = [p.clone() for p in host.field.parameters()]
    monkeypatch.setattr(host, "_lambdas", lambda step: {**TextTo3D._lambdas(host, step), "sds": float("nan")})
    assert host.train_step()["skipped"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, host.field.parameters()))
    with pytest.raises(CarvError, match="has not been finite"):
        host.train_step()


def test_a_teacher_that_gives_no_finite_draw_moves_nothing_and_ends_the_run(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.generate.trainer.MAX_BAD_STEPS", 2)
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    monkeypatch.setattr(type(host.teacher), "eps_hat", lambda self, z_t, t, text: torch.full_like(z_t, float("nan")))
    before = [p.clone() for p in host.field.parameters()]
    assert host.train_step()["skipped"] == 1.0  # the regularisers' gradients alone are finite
    assert all(torch.equal(a, b) for a, b in zip(before, host.field.parameters()))
    with pytest.raises(CarvError, match="has not been finite"):
        host.train_step()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["device=cuda"], "torch sees no GPU"),
        (["system.geometry_type=hash", "system.loss.lambda_tv=1"], "lambda_tv"),
    ],
)
def test_what_cannot_be_built_is_refused(
    overrides: list[str], words: str, sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CarvError, match=words):
        TextTo3D(tiny_config(sd_folder, *overrides), sd_teacher)


def test_a_view_in_the_prompt_is_refused_where_each_render_has_its_own(sd_folder: Path, sd_teacher: Any) -> None:
    prompt = "A mug, Front Left View"
    with pytest.raises(CarvError, match=r"names a view \(front left view\)"):
        TextTo3D(tiny_config(sd_folder, prompt=prompt), sd_teacher)
    off = "system.prompt_processor.view_dependent_prompting=false"
    told = TextTo3D(tiny_config(sd_folder, off, prompt=prompt), sd_teacher).view_text(orbit(1))
    assert torch.equal(told.text, sd_teacher.text_embeddings([prompt]))


def test_words_that_carv_tiny_does_not_know_are_refused_before_it_is_loaded() -> None:
    for prompt in ("", "   ", "../../x", "<script>alert(1)</script>", "a red zeppelin"):
        with pytest.raises(CarvError):
            TextTo3D(load_config(prompt=prompt), teacher=object())  # type: ignore[arg-type]


def test_the_resolved_config_names_the_field_that_was_built(sd_folder: Path, sd_teacher: Any) -> None:
    config = tiny_config(sd_folder)
    host = TextTo3D(config, sd_teacher)
    assert look_up(to_mapping(host.config), "system.geometry_type") == "voxel"
    assert config.system.geometry_type == "auto"  # the caller's is left as it was
