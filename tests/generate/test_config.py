"""Configurations: what is read, what is refused in which words, and that every option has a reader."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import carv_3d
from carv_3d.config.reader import to_mapping
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config, config_to_yaml, load_config
from carv_3d.io.structured import differing_keys
from carv_3d.report.page import flatten
from carv_3d.scenes.regularizers import REGULARIZERS

CONFIGS = Path(__file__).parents[2] / "carv_3d" / "configs"


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(CarvError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_written_out_config_is_the_default() -> None:
    assert differing_keys(to_mapping(load_config(CONFIGS / "carv-tiny.yaml")), to_mapping(load_config())) == []


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    config = load_config(path, prompt="a red mug")
    assert config.prompt == "a red mug"


def test_the_baseline_differs_in_the_estimator_alone() -> None:
    default, baseline = to_mapping(load_config()), to_mapping(load_config(CONFIGS / "carv-tiny-baseline.yaml"))
    assert set(differing_keys(default, baseline)) == {
        "data.batch_size",
        "system.guidance.antithetic",
        "system.guidance.num_draws",
        "system.guidance.proposal",
        "system.guidance.stratify",
    }


def test_overrides_reach_their_place_and_kind() -> None:
    config = load_config(
        overrides=["system.guidance.num_draws=8", "data.fovy_range=[30,50]", "system.optimizer.args.lr=1e-3"],
        seed=7,
    )
    assert config.system.guidance.num_draws == 8
    assert config.data.fovy_range == (30.0, 50.0)
    assert config.system.optimizer.args.lr == 1e-3
    assert config.seed == 7
    assert config.system.guidance.proposal == "weight"  # the neighbours keep their defaults


def test_a_path_may_be_text() -> None:
    assert load_config("carv-tiny-voxel") == load_config(Path("carv-tiny-voxel"))
    with pytest.raises(CarvError, match="there is no config file x"):
        load_config("x")
    for path in ("", " ", "\n"):
        with pytest.raises(CarvError, match=r"path is .*, which names no file; give a YAML file, or None for the def"):
            load_config(path)
    for value in (0, [], False, b""):
        with pytest.raises(CarvError, match=r"path is .*; it must be a path, or text, or None"):
            load_config(value)  # type: ignore[arg-type]
        with pytest.raises(CarvError, match=r"prompt is .*; it must be text, '' for the configuration's"):
            load_config(prompt=value)  # type: ignore[arg-type]


def test_a_configuration_of_the_package_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("carv-tiny-quick", "carv-tiny-quick.yaml", "configs/carv-tiny-quick.yaml"):
        assert load_config(Path(name)) == load_config(CONFIGS / "carv-tiny-quick.yaml")
    (tmp_path / "carv-tiny-quick").write_text("seed: 7")  # what is there comes first
    assert load_config(Path("carv-tiny-quick")).seed == 7
    assert "did you mean carv-tiny-quick?" in refusal(path=Path("carv-tiny-qick"))


def test_file_then_overrides_then_prompt(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("trainer: {max_steps: 40}\nsystem: {prompt_processor: {prompt: from the file}}\n")
    assert load_config(file).prompt == "from the file"
    config = load_config(file, ["trainer.val_check_interval=5"], prompt="given")
    assert (config.prompt, config.trainer.max_steps, config.trainer.val_check_interval) == ("given", 40, 5)
    config = load_config(file, ["trainer.max_steps=50", "seed=3"], seed=4)
    assert (config.trainer.max_steps, config.seed) == (50, 4)


def test_the_annealing_follows_the_length_of_the_run() -> None:
    config = load_config(overrides=["trainer.max_steps=50"])
    assert config.system.guidance.max_step_percent == [0.98, 0.4, 50]
    assert config.system.guidance.trainer_max_steps == 50
    assert config.system.loss.lambda_opaque == [0.0, 10.0, 50]
    given = load_config(overrides=["trainer.max_steps=50", "system.guidance.max_step_percent=0.9"])
    assert given.system.guidance.max_step_percent == 0.9


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("system.guidance.num_drws=3", "did you mean 'system.guidance.num_draws'"),
        ("trainer.max_step=3", "did you mean 'trainer.max_steps'"),
        ("system.loss.lambda_spars=1", "did you mean 'system.loss.lambda_sparsity'"),
        ("zzz=1", "the top level has: seed, device, logger, data, system, trainer, checkpoint"),
        ("DATA.WIDTH=8", "unknown option 'DATA.WIDTH'; did you mean 'data.width'"),
        ("zzz.qqq=1", "the top level has: seed, device, logger, data, system, trainer, checkpoint"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(override: str, words: str) -> None:
    message = refusal(override)
    assert f"'{override.split('=')[0]}'" in message
    assert words in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("system.guidance.num_draws=0", "num_draws is 0"),
        ("system.guidance.antithetic=" + "7" * 5000, "cannot be read: Exceeds the limit"),
        ("system.guidance.proposal=unifrm", "proposal is 'unifrm'"),
        ("system.guidance.min_step_percent=0.99", "min_step_percent"),
        ("system.guidance.max_step_percent=1.5", "max_step_percent"),
        ("system.loss.lambda_sds=[1,2]", "lambda_sds"),
        ("system.loss.lambda_sds=.nan", "lambda_sds"),
        ("system.geometry_type=voxle", "did you mean voxel"),
        ("system.geometry.resolution=1", "resolution is 1"),
        ("system.renderer.num_samples_per_ray=0", "num_samples_per_ray is 0"),
        ("system.background.random_probability=1.1", "random_probability is 1.1"),
        ("system.background.random_min=-0.1", "random_min is -0.1"),
        ("system.background.random_tint=2", "random_tint is 2"),
        ("trainer.max_steps=1e3", "counts epochs"),
        ("system.loss.lambda_opacity=[0,1,5.0]", "counts epochs"),
        ("system.prompt_processor.front_threshold=181", "front_threshold is 181"),
        ("system.prompt_processor.use_perp_neg=true", "set fine_views=false"),
        (
            "system.prompt_processor={use_perp_neg: true, fine_views: false, view_dependent_prompting: false}",
            "set view_dependent_prompting=true",
        ),
        ("system.optimizer.name=Adm", "did you mean Adam"),
        ("system.optimizer.args.lr=0", "lr is 0"),
        ("system.optimizer.args.betas=[0.9,1.0]", "betas"),
        ("system.optimizer.args.eps=-1", "eps is -1"),
        ("system.optimizer.args.weight_decay=-1", "weight_decay is -1"),
        ("system.scheduler.name=linear", "name is 'linear'"),
        ("system.scheduler.final_factor=0", "final_factor is 0"),
        ("system.exporter.resolution=4", "resolution is 4"),
        ("data.camera_distance_range=[3,2]", "camera_distance_range"),
        ("data.batch_size=0", "batch_size is 0"),
        ("trainer.max_steps=0", "max_steps is 0"),
        ("trainer.val_check_interval=0", "val_check_interval is 0"),
        ("trainer.step_seconds=0", "step_seconds is 0"),
        ("trainer.step_seconds=0.2", "which is for num_draws: auto, and num_draws is 2"),
        ("checkpoint.every_n_train_steps=0", "every_n_train_steps is 0"),
        ("seed=-1", "seed is -1"),
        ("system.guidance.seed=-1", "seed is -1"),
        ("system.guidance.seed=9223372036854775808", "below 2^63"),
        ("system.geometry.resolution=100000", "resolution is 100000; it must be a whole number from 2 to 1024"),
        ("system.geometry.log2_hashmap_size=200", "log2_hashmap_size is 200"),
        ("system.geometry.n_levels=0", "n_levels is 0"),
        ("system.geometry.n_features_per_level=17", "n_features_per_level is 17"),
        ("system.geometry.n_neurons=0", "n_neurons is 0"),
        ("system.geometry.n_hidden_layers=-1", "n_hidden_layers is -1"),
        ("system.geometry.blob_scale=-1", "blob_scale is -1"),
        ("system.renderer.near_plane=-1", "near_plane is -1"),
        ("system.renderer.prune_density_threshold=-1", "prune_density_threshold is -1"),
        ("system.exporter.smoothing=-1", "smoothing is -1"),
        ("system.exporter.smoothing=100000000", "smoothing is 100000000"),
        ("system.exporter.longest_side=0", "longest_side is 0"),
        ("system.exporter.min_component=1", "min_component is 1"),
        ("system.loss.lambda_recon=-5", "lambda_recon is -5"),
        ("system.loss.lambda_sds=[0,1,-2,100]", "lambda_sds is [0, 1, -2, 100]"),
        ("data.eval_elevation_deg=500", "eval_elevation_deg is 500"),
        ("data.eval_camera_distance=0", "eval_camera_distance is 0"),
        ("data.eval_fovy_deg=200", "eval_fovy_deg is 200"),
        ("device=gpu", "device is 'gpu'"),
        ("trainer.max_steps=many", "a whole number"),
        ("trainer.max_steps=2.5", "a whole number"),
        ("seed=true", "a whole number"),
        ("system.guidance.antithetic=3", "true or false"),
        ("system.optimizer.args.betas=0.9", "a list of 2 numbers"),
        ("data.fovy_range=[1,2,3]", "a list of 2 numbers"),
        ("device=3", "one of auto, cpu, cuda"),
        ("system.prompt_processor={prompt: 3}", "text"),
        ("system=3", "a group of options"),
        ("trainer=[1]", ""),
    ],
)
def test_a_value_of_the_wrong_kind_or_range_is_named(override: str, words: str) -> None:
    assert words in refusal(override)


@pytest.mark.parametrize(
    "override",
    ["x", "=3", "a..b=1", "trainer.max_steps=[1", "seed=${nothing}", "seed=010", "data.elevation_range=[-5,010]"],
)
def test_a_broken_override_is_refused(override: str) -> None:
    refusal(override)


def test_broken_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("trainer: [1\n")
    assert "not readable YAML" in refusal(path=file)
    file.write_text("- 1\n- 2\n")
    assert "groups of options" in refusal(path=file)
    file.write_text("3\n")
    assert refusal(path=file) == (
        f"{file} must hold groups of options (key: value), and it holds no group; correct it, or name another file"
    )
    file.write_bytes(b"\xff\xfe\x00 nonsense \x80")
    assert str(file) in refusal(path=file)
    assert f"did you mean {file}" in refusal(path=tmp_path / "cc.yaml")
    assert str(tmp_path) in refusal(path=tmp_path)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red mug",
        "1e3",
        "null",
        "${oc.env:HOME}",
        r"a \${x} \\${y} \ b",
        "'\"<b>&",
        "a: b # c\nd",
        "é✓",
        "- x",
    ],
)
def test_a_config_written_and_read_is_the_same(prompt: str, tmp_path: Path) -> None:
    config = load_config(overrides=["system.loss.lambda_sds=[0,1,10]"], prompt=prompt)
    (tmp_path / "c.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config


def test_control_characters_and_endless_prompts_are_refused() -> None:
    for prompt in ("a\x00b", "a\x1b[31m", "\udcff", "x" * 2001):
        with pytest.raises(CarvError, match="prompt"):
            load_config(prompt=prompt)


def _names_that_are_read() -> set[str]:
    """Attributes that the package takes from something, outside of the checks of the options themselves."""
    accepted: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and child.name == "__post_init__":
                continue
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
                accepted.add(child.attr)
            visit(child)

    for file in Path(carv_3d.__file__).parent.rglob("*.py"):
        visit(ast.parse(file.read_text(encoding="utf-8")))
    return accepted


def test_every_option_is_read_by_something() -> None:
    read = _names_that_are_read()
    leaves = [name.rpartition(".")[2] for name, _ in flatten(to_mapping(Config()))]
    losses = {f"lambda_{name}" for name in ("sds", "sds_img", "recon", *REGULARIZERS)}
    assert [name for name in leaves if name not in read and name not in losses] == []
