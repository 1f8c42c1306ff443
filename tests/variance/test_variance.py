"""`carv variance` against the plain variance of repeated steps, figures by hand, and the command as a user meets it."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.cli.main import main as cli
from carv_3d.cli.variance import read_grid
from carv_3d.core.variance import total_variance
from carv_3d.errors import CarvError
from carv_3d.generate.config import load_config
from carv_3d.generate.trainer import TextTo3D
from carv_3d.io.files import locked
from carv_3d.teachers.gaussian import GaussianTeacher
from carv_3d.variance.command import BASELINE, VarianceRequest, run
from carv_3d.variance.figures import rows, tight, timesteps
from carv_3d.variance.methods import WORDS, method
from carv_3d.variance.show import print_table, table, write_csv, write_figures
from carv_3d.variance.study import Block, Entry, Study

SMALL = [
    "data.width=8", "data.height=8", "system.geometry_type=voxel", "system.geometry.resolution=6",
    "system.renderer.num_samples_per_ray=6", "trainer.max_steps=20", "device=cpu",
    "system.guidance.pretrained_model_name_or_path=gaussian", "system.guidance.guidance_scale=3",
]  # fmt: skip


def teacher() -> GaussianTeacher:
    means = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return GaussianTeacher(means, 0.4, names=["red", "green", "blue"], image_size=8)


def host_of(*overrides: str) -> TextTo3D:
    return TextTo3D(load_config(overrides=[*SMALL, *overrides], prompt="a red mug"), teacher())


def entry(R: int, K: int, name: str) -> Entry:
    return Entry(R, K, method(name))


def plain_gradients(e: Entry, n: int) -> Tensor:
    """(n, P) gradients of the distillation loss of steps as a run makes them."""
    values = [f"system.guidance.{k}={v}" for k, v in {**e.method.guidance, "num_draws": e.K}.items()]
    host = host_of(*values, f"data.batch_size={e.R}", "seed=0")
    host.step = 5
    out = []
    for _ in range(n):
        grads = torch.autograd.grad(host.forward()[1].loss_sds, list(host.field.parameters()))
        out.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(out)


def test_the_parts_add_up_to_the_variance_of_plain_steps_and_the_field_stays() -> None:
    entries = [BASELINE, entry(1, 4, "is+strat"), entry(1, 2, "is+strat+antithetic")]
    host = host_of("seed=0")
    host.step = 5
    before = [p.detach().clone() for p in host.field.parameters()]
    study = Study(host, entries)
    blocks = [study.block(i) for i in range(16)]
    found = rows(5, entries, blocks, BASELINE)
    for row, e in zip(found, entries):
        plain = plain_gradients(e, 100)
        squares = (plain - plain.mean(0)).square().sum(1).double()
        error = math.hypot(float(squares.std()) / 100**0.5, (row.variance.high - row.variance.low) / 4)
        assert abs(row.variance.value - total_variance(plain)) < 4 * error
        assert error < 0.25 * row.variance.value
    assert found[0].ecm.value == pytest.approx(1)
    assert 0 < found[1].upstream_share < 1
    assert found[1].v_in < found[0].v_in
    assert all(torch.equal(a, b) for a, b in zip(before, host.field.parameters()))
    again = study.block(3)
    assert (again.inside, again.outside, again.norms) == (blocks[3].inside, blocks[3].outside, blocks[3].norms)


@pytest.mark.parametrize("name", ["adaptive+strat", "control", "vae", "cameras+global", "is+strat+antithetic"])
def test_every_word_can_be_measured(name: str) -> None:
    entries = [BASELINE, entry(2, 2, name)]
    block = Study(host_of(), entries).block(0)
    assert block.inside["2,2," + name] > 0
    assert set(block.outside) == {e.pool for e in entries}
    assert block.seconds["2,2," + name]["step"] >= block.seconds["2,2," + name]["render"] > 0


@pytest.mark.parametrize("name", ["adaptive+strat", "control+strat"])
def test_what_is_learnt_while_measuring_is_taken_back(name: str) -> None:
    """A block is the same whether others were measured before it or not, and something was learnt before all."""
    one, other = Study(host_of(), [BASELINE, entry(1, 2, name)]), Study(host_of(), [BASELINE, entry(1, 2, name)])
    for i in range(3):
        one.block(i)
    a, b = one.block(3), other.block(3)
    assert (a.inside, a.outside) == (b.inside, b.outside)
    estimator = other.guidances["1,2," + name].estimator
    learner: Any = estimator.proposal if estimator.control is None else estimator.control
    learnt = [x for x in learner.state_dict().values() if isinstance(x, Tensor)]
    assert len(learnt) == 2
    assert all(x.count_nonzero() > 0 for x in learnt)


def made_up(*pairs: tuple[float, float]) -> list[Block]:
    """Blocks with V_in 8 of the baseline, and as given for uniform and is at (1, 2); s_out2 is 1 at R = 2, else 2."""
    steps = {"2,1,uniform": 3.0, "1,2,uniform": 2.0, "1,2,is": 2.0}
    seconds = {key: {"step": s, "denoise": 1.0} for key, s in steps.items()} | {"all": {"step": 9.0}}
    return [
        Block({"2,1,uniform": 8.0, "1,2,uniform": a, "1,2,is": b}, {"2,0,0": 1.0, "1,0,0": 2.0}, seconds, [])
        for a, b in pairs
    ]


ENTRIES = [BASELINE, entry(1, 2, "uniform"), entry(1, 2, "is")]


def test_figures_by_hand() -> None:
    found = rows(7, ENTRIES, made_up((7.0, 3.0), (9.0, 5.0)), BASELINE)
    assert [row.variance.value for row in found] == [9, 10, 6]
    assert found[2].ecm.value == pytest.approx(9 * 3 / (6 * 2))
    assert found[2].re is not None
    assert found[2].re.value == pytest.approx(10 / 6)
    assert found[2].bound == pytest.approx(9 * 3 / (2 * 1))  # upstream variance alone, without the denoising's second
    assert found[2].upstream_share == pytest.approx(2 / 6)
    assert not found[2].ecm.known  # two batches
    wide = rows(7, ENTRIES, made_up(*[(7.0, 3.0), (9.0, 5.0)] * 4), BASELINE)
    assert 27 / 14 < wide[2].ecm.low < wide[2].ecm.value < wide[2].ecm.high < 27 / 10
    expensive = rows(7, ENTRIES, made_up((7.0, 3.0), (9.0, 5.0)), BASELINE, upstream=10.0)
    assert expensive[2].ecm.value == pytest.approx(9 * 21 / (6 * 11))
    assert not tight(found, 0.1)
    assert not tight(wide, 0.1)
    assert tight(rows(7, ENTRIES, made_up(*[(8.0, 4.0)] * 8), BASELINE), 0.1)
    assert not tight(rows(7, ENTRIES, made_up(*[(8.0, 4.0)] * 7), BASELINE), 0.1)


def test_the_interval_knows_of_the_seconds() -> None:
    """Variances are alike in all blocks; the seconds of one method are 1 in a third of them and else 2."""
    blocks = made_up(*[(8.0, 4.0)] * 9)
    for b in blocks[:3]:
        b.seconds = b.seconds | {"1,2,is": {"step": 1.0, "denoise": 0.5}}
    uniform, one = rows(7, ENTRIES, blocks, BASELINE)[1:]
    assert uniform.ecm.low == uniform.ecm.value == uniform.ecm.high == pytest.approx(9 * 3 / (10 * 2))
    assert one.seconds == 2.0
    assert one.ecm.value == one.ecm.low == pytest.approx(9 * 3 / (6 * 2))
    assert one.ecm.high == pytest.approx(9 * 3 / (6 * 1))  # the median is 1 in more than a fortieth of resamples


def test_a_scene_of_a_run_by_the_clock_is_measured_where_its_schedules_are() -> None:
    """Its timesteps fall from 900 to 100 over 20 steps; at three quarters of its seconds it has made one step."""
    host = host_of("system.guidance.max_step_percent=[0.9,0.1,20]")
    host.step, host.progress = 1, 0.75
    block = Study(host, [BASELINE]).block(0)
    top = max(t for t, _ in block.norms)
    assert top <= host.guidance.options.timestep_range(1000, 15)[1] == 299
    host.progress = None
    assert max(t for t, _ in Study(host, [BASELINE]).block(0).norms) > 299


def test_the_papers_figures_stand_next_to_ours_where_they_are_comparable(tmp_path: Path) -> None:
    e = [BASELINE, entry(1, 8, "is+strat"), entry(1, 8, "is+strat+antithetic")]
    seconds = {k: {"step": 1.0, "denoise": 0.5} for k in (*(one.key for one in e), "all")}
    inside = {one.key: 1.0 for one in e}
    found = rows(0, e, [Block(inside, {"2,0,0": 1.0, "1,0,0": 1.0}, seconds, [])] * 2, BASELINE)
    assert [row.paper_ecm for row in found] == [None, 3.3, None]
    write_csv(tmp_path / "variance.csv", found)
    lines = list(csv.DictReader((tmp_path / "variance.csv").read_text().splitlines()))
    assert {x["batches"] for x in lines} == {"2"}
    assert {x["ecm_low"] for x in lines} == {""}
    assert [(x["method"], x["paper_ecm"], x["paper_re"]) for x in lines] == [
        ("uniform", "", ""), ("is+strat", "3.3", "1.25-1.31"), ("is+strat+antithetic", "", ""),
    ]  # fmt: skip
    assert float(lines[1]["ecm"]) == found[1].ecm.value == 1
    assert float(lines[1]["seconds_denoise"]) == 0.5


def test_a_narrow_console_gets_the_whole_table() -> None:
    from io import StringIO

    from rich.console import Console

    narrow = Console(width=40, file=(shown := StringIO()))
    found = rows(7, ENTRIES, made_up((7.0, 3.0), (9.0, 5.0)), BASELINE)
    long = replace(found[1], entry=replace(found[1].entry, method=method("is+strat+antithetic")))
    print_table(table([*found, long], found[0]), narrow)
    assert "┃ R ┃ K ┃" in shown.getvalue()
    assert "is+strat+antithetic" in shown.getvalue()
    assert "2.25" in shown.getvalue()  # the ECM by hand, above
    assert "2 batches; intervals are shown from 8 on" in shown.getvalue()
    assert "…" not in shown.getvalue()


def test_the_oracle_by_timestep_by_hand() -> None:
    w = torch.linspace(1, 100, 100).double()
    norms = [(t, float(w[t]) ** 2) for t in range(100)]
    same = timesteps([Block({}, {}, {}, norms)], w, 0, 99, bins=100)
    assert same.share == pytest.approx(1)  # the weight is the oracle
    flat = timesteps([Block({}, {}, {}, [(t, 4.0 if t < 50 else 1.0) for t in range(100)])], w, 0, 99, bins=2)
    assert flat.norm == [2, 1]
    assert flat.oracle == pytest.approx([2 / 3, 1 / 3])
    assert flat.share < 0  # w rises where the gradient falls


def test_images_are_written(tmp_path: Path) -> None:
    from PIL import Image

    found = rows(7, ENTRIES, made_up((7.0, 3.0), (9.0, 5.0)), BASELINE)
    by_t = timesteps([Block({}, {}, {}, [(t, 1.0 + t) for t in range(100)])], torch.ones(100), 0, 99)
    for name in write_figures(tmp_path, found, {7: by_t}):
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("L").getcolors() or [0] * 9) > 8


def test_methods_and_grids_are_read() -> None:
    assert method("is+strat").guidance["proposal"] == "weight"
    assert method("vae").guidance["vae_sample"] == "draw"
    assert method("cameras").data == {"camera_sampling": "low_discrepancy"}
    assert read_grid(["R=2,1", "K=4"]) == {"R": (1, 2), "K": (4,)}
    asked = VarianceRequest(Path("x"), R=(1,), K=(1, 2), methods=("uniform", "antithetic"))
    assert [e.key for e in asked.entries()] == ["2,1,uniform", "1,1,uniform", "1,2,uniform", "1,2,antithetic"]
    assert set(WORDS) >= {"uniform", "is", "strat", "antithetic", "control", "vae", "cameras"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml"], "there is no nothing.yaml"),
        (["nothing.yaml", "--methods", "is+strut"], "no method 'strut' (in 'is+strut'); did you mean strat?"),
        (["nothing.yaml", "--methods", "is+adaptive"], "says is and adaptive, which exclude each other"),
        (["nothing.yaml", "--methods", "is+antithetic+control"], "in a pair eps cancels by itself"),
        (["nothing.yaml", "--methods", "is+cameras"], "give --grid an R from 2"),
        (["nothing.yaml", "--grid", "N=3"], "--grid does not take 'N=3'"),
        (["nothing.yaml", "--grid", "K=\u00b2"], "--grid does not take 'K=\u00b2'"),
        (["nothing.yaml", "--grid", "K=1", "--methods", "antithetic"], "give --grid an even K"),
        (["nothing.yaml", "--grid", "K=0"], "--grid K is [0]"),
        (["nothing.yaml", "--budget", "0"], "--budget is 0"),
        (["nothing.yaml", "--tolerance", "2"], "--tolerance is 2"),
        (["nothing.yaml", "--methds", "is"], "unknown option --methds; did you mean --methods?"),
    ],
)
def test_mistakes_are_named_before_any_work(words: list[str], said: str, capsys: Any) -> None:
    assert cli(["variance", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_second_of_two_in_one_folder_is_refused(tmp_path: Path) -> None:
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text("system:\n  prompt_processor:\n    prompt: a red mug\n")
    out.mkdir()
    with locked(out), pytest.raises(CarvError, match="another run is at work in"):
        run(VarianceRequest(source=config, out=out, overrides=SMALL), teacher())
    assert list(out.iterdir()) == []


def test_the_command_measures_resumes_and_refuses(tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("system:\n  prompt_processor:\n    prompt: a red mug\n")
    out = tmp_path / "out"
    given: dict[str, Any] = {
        "source": config, "at": (2, 4), "K": (2,), "methods": ("is",), "budget": 1e-6, "out": out, "overrides": SMALL,
    }  # fmt: skip
    assert run(VarianceRequest(**given), teacher()) == 0
    lines = list(csv.DictReader((out / "variance.csv").read_text().splitlines()))
    assert [(x["step"], x["R"], x["K"], x["method"]) for x in lines] == [
        (step, *rest) for step in ("2", "4") for rest in (("2", "1", "uniform"), ("1", "2", "is"))
    ]
    assert "the time is up" in capsys.readouterr().out
    first = json.loads((out / "blocks.json").read_text())
    assert [len(b) for b in first["blocks"].values()] == [2, 2]
    with pytest.raises(CarvError, match="go on in it with --resume"):
        run(VarianceRequest(**given), teacher())
    with pytest.raises(CarvError, match="figures of other settings"):
        run(VarianceRequest(**{**given, "K": (4,), "resume": True}), teacher())
    assert run(VarianceRequest(**{**given, "resume": True}), teacher()) == 0
    assert json.loads((out / "blocks.json").read_text())["blocks"] == first["blocks"]  # nothing is measured twice
    with pytest.raises(CarvError, match="is no run of carv generate"):
        run(VarianceRequest(**{**given, "source": tmp_path}), teacher())
    config.write_text("seed: 1\n")
    with pytest.raises(CarvError, match="has no prompt"):
        run(VarianceRequest(**{**given, "out": tmp_path / "new"}), teacher())
