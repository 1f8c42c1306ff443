"""The built-in trainer: a resumed run is the uninterrupted one, and what each step sees, counts and leaves out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_state import untested_after_restoring
from tiny_host import tiny_config
from torch import Tensor

from carv_3d.config.reader import to_mapping
from carv_3d.core.seeds import OwnGlobals
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.guidance.sds import SDSGuidance
from carv_3d.io.structured import look_up
from carv_3d.scenes.cameras import Cameras, orbit


@pytest.mark.parametrize(("kind", "rate"), [("voxel", 0.06), ("hash", 0.01), ("fused", 0.04)])
def test_each_geometry_has_its_learning_rate_unless_one_is_given(
    kind: str, rate: float, sd_folder: Path, sd_teacher: Any
) -> None:
    host = TextTo3D(tiny_config(sd_folder, f"system.geometry_type={kind}"), sd_teacher)
    assert host.optimizer.param_groups[0]["lr"] == host.learning_rate(0) == host.config.system.optimizer.args.lr == rate
    host = TextTo3D(tiny_config(sd_folder, f"system.geometry_type={kind}", "system.optimizer.args.lr=0.5"), sd_teacher)
    assert host.optimizer.param_groups[0]["lr"] == host.learning_rate(0) == 0.5


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


class Careless:
    """A teacher that also draws from torch's global generator."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def eps_hat(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self._teacher.eps_hat(z_t, t, text) + 0.1 * torch.rand(())

    def eps_hat_cfg(self, z_t: Tensor, *rest: Any) -> Tensor:
        return self._teacher.eps_hat_cfg(z_t, *rest) + 0.1 * torch.rand(())


def fields_after(host: TextTo3D, count: int) -> list[Tensor]:
    """The field's parameters after `count` more steps."""
    for _ in range(count):
        host.train_step()
    return [p.detach().clone() for p in host.field.parameters()]


def test_a_run_has_the_global_generators_for_itself(sd_folder: Path, sd_teacher: Any) -> None:
    config, teacher = tiny_config(sd_folder), Careless(sd_teacher)
    alone = fields_after(TextTo3D(config, teacher), 4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, other = TextTo3D(config, teacher), TextTo3D(tiny_config(sd_folder, seed=1), teacher)
    for _ in range(2):  # interleaved with another run, and with draws of the host's own
        fields_after(first, 1)
        fields_after(other, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    resumed = TextTo3D(config, teacher)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    for host in (first, resumed):
        assert all(map(torch.equal, alone, fields_after(host, 2)))


def test_every_item_of_the_saved_state_is_restored(sd_folder: Path, sd_teacher: Any) -> None:
    given = ["control_variate=true", "proposal=adaptive", "num_draws=4", "antithetic=false"]
    config = tiny_config(sd_folder, *(f"system.guidance.{word}" for word in given), "trainer.max_steps=9")
    host = TextTo3D(config, Careless(sd_teacher))
    fields_after(host, 3)
    host.progress, host.non_finite.count = 0.5, 19
    fresh = TextTo3D(config, Careless(sd_teacher))
    fields_after(fresh, 1)  # a fresh optimizer has no state at all
    fresh.globals = OwnGlobals(77, host.device)
    fresh.field.grid.data.add_(1)
    constant = ("optimizer.param_groups.", "guidance.generator_device", "guidance.rank", "guidance.estimator.shared")
    constant += ("run.", "guidance.estimator.proposal.name", "guidance.estimator.proposal.min_step")
    assert [k for k in untested_after_restoring(fresh, host.state_dict()) if not k.startswith(constant)] == []
    assert fresh.now == host.now == 4


def test_a_resumed_run_remembers_how_many_steps_were_not_finite(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(sd_teacher), "eps_hat", lambda self, z_t, t, text: torch.full_like(z_t, float("nan")))
    host = TextTo3D(tiny_config(sd_folder, "trainer.max_steps=30"), sd_teacher)
    fields_after(host, 19)
    resumed = TextTo3D(host.config, sd_teacher)
    resumed.load_state_dict(host.state_dict())
    with pytest.raises(CarvError, match="not been finite for 20 steps"):
        resumed.train_step()


def test_a_step_takes_another_guidance_and_other_cameras_for_the_one_call(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    other = SDSGuidance(host.teacher, replace(host.guidance.options, num_draws=3))
    data = replace(host.config.data, batch_size=2)
    own, config = host.guidance, host.config
    for out, guided, *_ in (host.forward(other, data), host.backward(other, data)):
        assert len(out.comp_rgb) == 2
        assert guided.estimate.residual.shape[:2] == (2, 3)
    assert host.guidance is own
    assert host.config is config
    out, guided = host.forward()
    assert len(out.comp_rgb) == 1
    assert guided.estimate.residual.shape[:2] == (1, 2)


def test_annealed_losses_follow_the_step(sd_folder: Path, sd_teacher: Any) -> None:
    """lambda_recon falls from 1000 to 0 over 100 steps; without any other loss the gradient is half of it at 50."""
    others = ["sds", "density", "opacity", "opaque"]
    words = [f"system.loss.lambda_{name}=0" for name in others] + ["system.guidance.use_recon_loss=true"]

    def gradient(recon: str, step: int) -> Tensor:
        host = TextTo3D(tiny_config(sd_folder, *words, f"system.loss.lambda_recon={recon}"), sd_teacher)
        host.step = step
        host.backward()
        return host.field.grid.grad.clone()

    whole = gradient("1000", 50)
    assert whole.norm() > 0
    torch.testing.assert_close(gradient("[1000,0,100]", 50), whole / 2, rtol=1e-4, atol=1e-9)
    assert gradient("[1000,0,100]", 100).norm() == 0


def test_cameras_follow_the_step(sd_folder: Path, sd_teacher: Any) -> None:
    """With progressive_until the first cameras stand at the evaluation view, later ones are spread; a low-discrepancy
    sequence continues from step to step."""
    spread = TextTo3D(tiny_config(sd_folder, "data.progressive_until=10", "data.batch_size=16"), sd_teacher)
    recorded: list[Cameras] = []
    text = spread.view_text
    spread.view_text = lambda cameras: recorded.append(cameras) or text(cameras)  # type: ignore[method-assign]
    for step in (0, 10):
        spread.step = step
        spread.upstream()
    width = [float(c.elevation.max() - c.elevation.min()) for c in recorded]
    assert width[0] < 0.2 * width[1]
    sequence = TextTo3D(tiny_config(sd_folder, "data.camera_sampling=low_discrepancy"), sd_teacher)
    recorded.clear()
    sequence.view_text = lambda cameras: recorded.append(cameras) or text(cameras)  # type: ignore[method-assign]
    for step in (0, 1):
        sequence.step = step
        sequence.upstream()
    assert abs(float(recorded[0].azimuth[0] - recorded[1].azimuth[0])) > 1


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
    with pytest.raises(CarvError, match=r"its progress is 1\.5, and a number from 0 to 1 is due"):
        again.load_state_dict({**host.state_dict(), "progress": 1.5})


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


def test_prompts_name_the_side_that_the_camera_sees(sd_folder: Path, sd_teacher: Any) -> None:
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    cond = host.view_text(orbit(4, elevation=10.0))
    expected = [f"{host.prompts.prompt}, {side} view" for side in ("front", "left", "back", "right")]
    assert torch.equal(cond.text, sd_teacher.text_embeddings(expected))
    assert torch.equal(cond.uncond, sd_teacher.text_embeddings([""]))
    assert cond.perp_neg is None
    assert cond.negative is None
    coarse = TextTo3D(tiny_config(sd_folder, "system.prompt_processor.fine_views=false"), sd_teacher)
    expected = [f"{coarse.prompts.prompt}, {side} view" for side in ("front", "side", "back", "side")]
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


def test_every_part_draws_from_its_own_generator(sd_folder: Path, sd_teacher: Any) -> None:
    hosts = [TextTo3D(tiny_config(sd_folder, seed=seed), sd_teacher) for seed in (0, 1)]
    seeds = [{g.initial_seed() for g in (*host.generators.values(), host.guidance.generator)} for host in hosts]
    assert len(seeds[0] | seeds[1]) == 2 * 4
    host = hosts[0]
    before = {name: g.get_state() for name, g in host.generators.items()}
    host.upstream()
    assert not any(torch.equal(g.get_state(), before[name]) for name, g in host.generators.items())


def test_what_passes_between_steps_is_no_cost_of_a_draw(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, skipped = TextTo3D(tiny_config(sd_folder, "system.guidance.num_draws=auto"), sd_teacher), []
    monkeypatch.setattr(host.guidance.auto, "skip", skipped.append)
    host.train_step()
    assert skipped == []
    assert host._ended is not None
    host._ended -= 5.0  # as if a preview had taken five seconds
    host.train_step()
    assert skipped == [pytest.approx(5.0, abs=1.0)]


def test_the_figures_of_a_step_are_of_its_render(sd_folder: Path, sd_teacher: Any) -> None:
    host, steps = TextTo3D(tiny_config(sd_folder), sd_teacher), []
    backward = host.backward
    host.backward = lambda: steps.append(backward()) or steps[-1]  # type: ignore[method-assign]
    metrics = host.train_step()
    out, guided, losses = steps[0]
    assert metrics["opacity"] == pytest.approx(float(out.opacity.detach().mean()))
    assert metrics["loss_recon"] == pytest.approx(float(losses["recon"].detach()))
    assert metrics["grad_norm"] == float(guided.scalars["grad_norm"])


def test_a_gradient_that_is_not_finite_is_left_out_and_then_ends_the_run(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.core.non_finite.LIMIT", 2)
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    before = [p.clone() for p in host.field.parameters()]
    monkeypatch.setattr(host, "_lambdas", lambda step: {**TextTo3D._lambdas(host, step), "sds": float("nan")})
    assert host.train_step()["skipped"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, host.field.parameters()))
    with pytest.raises(CarvError, match="has not been finite"):
        host.train_step()


def test_a_teacher_that_gives_no_finite_draw_moves_nothing_and_ends_the_run(
    sd_folder: Path, sd_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carv_3d.core.non_finite.LIMIT", 2)
    host = TextTo3D(tiny_config(sd_folder), sd_teacher)
    monkeypatch.setattr(host.teacher, "eps_hat", lambda z_t, t, text: torch.full_like(z_t, float("nan")))
    before = [p.clone() for p in host.field.parameters()]
    assert host.train_step()["skipped"] == 1.0  # the regularizers' gradients alone are finite
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
    cond = TextTo3D(tiny_config(sd_folder, off, prompt=prompt), sd_teacher).view_text(orbit(1))
    assert torch.equal(cond.text, sd_teacher.text_embeddings([prompt]))


def test_an_objective_with_a_negative_prompt_is_given_it_and_asks_for_it(sd_folder: Path, sd_teacher: Any) -> None:
    nfsd = "system.guidance.objective=nfsd"
    with pytest.raises(CarvError, match="the objective nfsd needs a negative prompt: set system"):
        TextTo3D(tiny_config(sd_folder, nfsd), sd_teacher)
    gradients = []
    for negative in ("bad", "worse"):
        host = TextTo3D(tiny_config(sd_folder, nfsd, f"system.prompt_processor.negative_prompt={negative}"), sd_teacher)
        _, guided, _ = host.backward()
        assert torch.equal(guided.cond.uncond, sd_teacher.text_embeddings([""]))
        assert torch.equal(guided.cond.negative, sd_teacher.text_embeddings([negative]))
        gradients.append(guided.estimate.grad)
        assert host.meter.nfe == 3 * 2  # text, unconditional and negative, of two draws
    assert not torch.equal(*gradients)


def test_words_that_carv_tiny_does_not_know_are_refused_before_it_is_loaded() -> None:
    for prompt in ("", "   ", "../../x", "<script>alert(1)</script>", "a red zeppelin"):
        with pytest.raises(CarvError):
            TextTo3D(load_config(prompt=prompt), teacher=object())  # type: ignore[arg-type]


def test_the_resolved_config_names_the_field_that_was_built(sd_folder: Path, sd_teacher: Any) -> None:
    config = tiny_config(sd_folder, "system.geometry_type=auto", "system.geometry.log2_hashmap_size=10")
    host = TextTo3D(config, sd_teacher)
    assert look_up(to_mapping(host.config), "system.geometry_type") == "fused"
    assert config.system.geometry_type == "auto"  # the caller's is left as it was


def test_buffers_of_the_renderer_and_seeds_of_the_global_generators(sd_folder: Path, sd_teacher: Any) -> None:
    first, other = (TextTo3D(tiny_config(sd_folder, seed=seed), sd_teacher) for seed in (0, 1))
    assert not torch.equal(*(host.globals.state_dict()["torch"] for host in (first, other)))
    for host, value in ((first, 1.0), (other, 2.0)):  # as the occupancy grid's on CUDA
        host.renderer.register_buffer("occupancy", torch.tensor(value))
    other.load_state_dict({**first.state_dict(), "run": {}})
    assert float(other.renderer.occupancy) == 1.0


@pytest.mark.parametrize(("key", "other"), [("prompt", "a blue cup"), ("seed", 5)])
def test_the_checkpoint_of_another_run_is_refused(sd_folder: Path, sd_teacher: Any, key: str, other: Any) -> None:
    state = TextTo3D(tiny_config(sd_folder), sd_teacher).state_dict()
    host = TextTo3D(tiny_config(sd_folder, **{key: other}), sd_teacher)
    before = copy.deepcopy(host.field.state_dict())
    with pytest.raises(CarvError, match=f"is of a run with {key} .*, and this one has .*{other}.*; restore its own"):
        host.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), host.field.state_dict().values()))
    host.load_state_dict({k: v for k, v in state.items() if k != "run"})  # one of version 0.1.0
