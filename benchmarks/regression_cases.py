"""The cases of `regression`: commands as a user calls them, on models with random weights."""

from __future__ import annotations

import csv
import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from regression_version import (
    TIME_TO_TARGET,
    batches,
    carv,
    carv_attribute,
    carv_compare,
    carv_variance,
    config,
    from_file,
    module,
    renamed,
)


class Case(NamedTuple):
    """What is run; slow ones are for `pytest -m slow` and the command line."""

    run: Callable[[], dict[str, Any]]
    slow: bool = False


CASES: dict[str, Case] = {}


def case(name: str, slow: bool = False) -> Any:
    """Register a function without arguments that returns results by name."""

    def add(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        CASES[name] = Case(function, slow)
        return function

    return add


@functools.cache
def model_makers() -> Any:
    """The makers of models with random weights that the tests have, whichever version is run."""
    return from_file(Path(__file__).resolve().parents[1] / "tests" / "small_models.py", "regression_models")


@functools.cache
def models_folder() -> tempfile.TemporaryDirectory[str]:
    """Where they are made; removed at the end."""
    return tempfile.TemporaryDirectory(prefix="regression-")


@functools.cache
def small_model() -> str:
    """A folder with the tests' Stable Diffusion of random weights."""
    return str(model_makers().build_sd_folder(Path(models_folder().name) / "model", context=40))


@functools.cache
def xl_model() -> str:
    """A folder with the tests' Stable Diffusion XL of random weights."""
    return str(model_makers().build_xl_folder(Path(models_folder().name) / "xl"))


@functools.cache
def v_model() -> str:
    """`small_model`, read as a v-prediction model."""
    return str(model_makers().as_v_prediction(Path(small_model()), Path(models_folder().name) / "v"))


def columns(path: str | Path) -> dict[str, Any]:
    """A CSV by column, seconds apart: numbers where all cells are, text otherwise."""
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    out: dict[str, Any] = {}
    for name in rows[0]:
        if "seconds" in name:
            continue
        cells = [row[name] for row in rows]
        try:
            out[renamed(name)] = [float(cell) if cell else float("nan") for cell in cells]
        except ValueError:
            out[renamed(name)] = "|".join(cells)
    return out


def state(path: str | Path) -> dict[str, Any]:
    """A checkpoint's groups, with today's names; states of the global generators are no longer kept."""
    state = module("runs.checkpoint").load_checkpoint(Path(path))[0]
    return {renamed(name): value for name, value in state.items() if name != "rng"}


# carv generate

# what were the defaults when the results were recorded
FIRST_DEFAULTS = [
    "system.geometry_type=voxel", "system.geometry.n_levels=8", "system.guidance.guidance_scale=3.5",
    "system.loss.lambda_recon=1000", "system.loss.lambda_density=20", "system.loss.lambda_opacity=50",
    "system.loss.lambda_opaque=0",
]  # fmt: skip
SCENE = [
    "device=cpu", "data.width=16", "data.height=16", "data.eval_width=16", "data.eval_height=16",
    "data.n_test_views=8", "system.geometry.resolution=8",
    "system.renderer.num_samples_per_ray=8", "system.exporter.resolution=12", "trainer.max_steps=3",
    "trainer.val_check_interval=2", "checkpoint.every_n_train_steps=2", *FIRST_DEFAULTS,
]  # fmt: skip
HASH = [
    "system.geometry_type=hash", "system.geometry.n_levels=4", "system.geometry.log2_hashmap_size=10",
    "system.geometry.n_neurons=16", "system.optimizer.args.lr=0.06",
]  # fmt: skip
GUIDANCE = {
    "defaults": [],
    "one uniform draw": ["num_draws=1", "antithetic=false", "proposal=uniform", "stratify=none"],
    "adaptive, global strata": ["num_draws=4", "proposal=adaptive", "stratify=global"],
    "8 draws, threestudio's convention": ["num_draws=8", "cfg_convention=threestudio", "weighting_strategy=uniform"],
    "control variate": ["num_draws=4", "antithetic=false", "control_variate=true", "weighting_strategy=fantasia3d"],
    "a posterior sample per draw": ["num_draws=4", "vae_sample=draw"],
    "sjc": ["use_sjc=true", "num_draws=4"],
    "sjc without variance reduction": ["use_sjc=true", "var_red=false"],
    "hifa": ["use_img_loss=true", "num_draws=2"],
    "sqrt_anneal and clipping": ["sqrt_anneal=true", "grad_clip=[0,2,0.5,3]", "guidance_scale=[0,50,10,3]"],
}  # fmt: skip
SCENES = {
    "hash grid": HASH,
    "two renders, Perp-Neg": [
        "data.batch_size=2", "system.prompt_processor.use_perp_neg=true", "system.prompt_processor.fine_views=false",
    ],
    "regularizers": [
        "data.batch_size=2", "system.loss.lambda_sparsity=1", "system.loss.lambda_opaque=1",
        "system.loss.lambda_tv=1", "system.loss.lambda_orient=[0,1,10,3]",
    ],
    "low-discrepancy cameras": ["data.batch_size=2", "data.camera_sampling=low_discrepancy"],
    "perturbed cameras": ["data.camera_perturb=0.1", "data.center_perturb=0.2", "data.up_perturb=0.02"],
    "a negative prompt, no views": [
        "system.prompt_processor.negative_prompt=blue", "system.prompt_processor.view_dependent_prompting=false",
        "data.progressive_until=5",
    ],
    "AdamW": [
        "system.optimizer.name=AdamW", "system.optimizer.args.weight_decay=0.1", "system.scheduler.name=constant",
    ],
}  # fmt: skip
CHOSEN = {f"generate: {name}": [f"system.guidance.{word}" for word in words] for name, words in GUIDANCE.items()}
CHOSEN |= {f"generate: {name}": words for name, words in SCENES.items()}
FEWER = ("generate: defaults", "generate: hash grid", "generate: two renders, Perp-Neg")


def generate(words: list[str], model: str = "", prompt: str = "a red mug") -> dict[str, Any]:
    """A whole run."""
    name = f"system.guidance.pretrained_model_name_or_path={model or small_model()}"
    carv("generate", prompt, "--out", "run", "--seed", "1", *SCENE, name, *words)
    return run_results("run")


def mesh(folder: str | Path) -> dict[str, Any]:
    """The surface of a run's field, before triangles are saved and a texture is made."""
    fields, meshes = module("scenes.fields"), module("scenes.mesh")
    system = module("generate.config").load_config(Path(folder) / "config.yaml").system
    field = fields.make_field(system.geometry_type, system.geometry, device="cpu")
    field.load_state_dict(state(f"{folder}/checkpoint")["field"])
    volume, options = meshes.density_volume(field, system.exporter.resolution), system.exporter
    level = meshes.choose_level(volume, field.radius, options.level)
    mesh = meshes.mesh_from_volume(volume, level, field.radius, options.min_component, options.smoothing)
    return {"vertices": np.asarray(mesh.vertices), "faces": np.asarray(mesh.faces)}


NEW_COLUMNS = ("iou", "psnr")  # of metrics.csv, which 42e1110 had in comparisons alone


def run_results(folder: str) -> dict[str, Any]:
    """What a run of `carv generate` left."""
    import imageio

    groups = state(f"{folder}/checkpoint")
    return {
        "metrics.csv": {k: v for k, v in columns(f"{folder}/metrics.csv").items() if k not in NEW_COLUMNS},
        "field": groups["field"],
        "optimizer": groups["optimizer"],
        "guidance": {renamed(k): v for k, v in groups["guidance"].items()},
        "generators": groups["generators"],
        "counts": [float(groups[name]) for name in ("step", "nfe", "renders")],
        **mesh(folder),
        "preview.png": imageio.v2.imread(f"{folder}/preview.png"),
    }


for name, words in CHOSEN.items():
    case(name, slow=name not in FEWER)(functools.partial(generate, words))


@case("generate: resumed", slow=True)
def resumed() -> dict[str, Any]:
    """A run of three steps that is made longer by two."""
    generate([])
    carv("generate", "--resume", "--out", "run", "trainer.max_steps=5")
    return run_results("run")


@case("generate: carv-tiny", slow=True)
def carv_tiny() -> dict[str, Any]:
    """The model that comes with the package, with the settings of `carv-tiny-quick`."""
    small = ["system.geometry.resolution=16", "system.exporter.resolution=24", "data.n_test_views=8", "device=cpu"]
    fast = ["trainer.max_steps=2", "data.eval_width=32", "data.eval_height=32", *FIRST_DEFAULTS]
    carv("generate", "a red mug", "--out", "run", "--seed", "1", "--config", config("carv-tiny-quick"), *small, *fast)
    return run_results("run")


@case("generate: settings for Stable Diffusion", slow=True)
def stable_diffusion() -> dict[str, Any]:
    """`stable-diffusion.yaml` on a hash grid that is small enough."""
    words = [word for word in [*SCENE, *HASH] if word not in (*FIRST_DEFAULTS, "system.optimizer.args.lr=0.06")]
    name = f"system.guidance.pretrained_model_name_or_path={small_model()}"
    carv("generate", "a red mug", "--out", "run", "--config", config("stable-diffusion"), *words, name)
    return run_results("run")


# carv variance

SCENE_FILE = "system:\n  prompt_processor:\n    prompt: a red mug\n"
METHODS = "uniform,is,strat,is+strat,global,is+strat+antithetic,adaptive,control,vae,cameras,is+strat+vae"


@case("variance: a configuration", slow=True)
def variance() -> dict[str, Any]:
    """Two batches at two points of a run."""
    Path("scene.yaml").write_text(SCENE_FILE)
    options = [*SCENE, f"system.guidance.pretrained_model_name_or_path={small_model()}"]
    carv_variance(
        "scene.yaml", "1,2", "1,2", options,
        "--methods", METHODS, "--at", "1", "--budget", "0.001", "--seed", "3", "--out", "out",
    )  # fmt: skip
    return {**batches("out"), **timeless("out/variance.csv"), "timesteps": columns("out/timesteps.csv")}


@case("variance: a run", slow=True)
def run_variance() -> dict[str, Any]:
    """Two batches at the end of a run of two renders on a hash grid."""
    generate(HASH)
    carv_variance("run", "1", "2,4", [], "--methods", "uniform,is+strat", "--budget", "0.001", "--out", "out")
    return {**batches("out"), **timeless("out/variance.csv")}


def timeless(path: str) -> dict[str, Any]:
    """The columns of a table that no clock is in."""
    compared = ("step", "R", "K", "method", "variance", "v_in", "s_out2", "re", "upstream_share")
    return {name: value for name, value in columns(path).items() if name.startswith(compared)}


# carv compare


@case("compare: new runs", slow=True)
def compare() -> dict[str, Any]:
    """Two methods, two seeds, two steps."""
    options = [o for o in SCENE if not o.startswith(("trainer", "checkpoint"))]
    carv_compare(
        ["single=system.guidance.num_draws=1,system.guidance.antithetic=false", "pair=system.guidance.num_draws=2"],
        [*options, f"system.guidance.pretrained_model_name_or_path={small_model()}"],
        "--prompt", "a red mug", "--seeds", "2", "--steps", "2", "--points", "2", "--out", "out",
    )  # fmt: skip
    out: dict[str, Any] = {}
    for folder in sorted(Path("out/runs").glob("*/*")):
        name = f"{folder.parent.name} {folder.name[-1]}"
        out[f"{name}: metrics.csv"] = columns(folder / "metrics.csv")
        out[f"{name}: field"] = state(folder / "checkpoint")["field"]
        out[f"{name}: vertices"] = mesh(folder)["vertices"]
    return {**out, **comparison("out")}


@case("compare: runs that exist", slow=True)
def compare_existing() -> dict[str, Any]:
    """Five made-up runs of each of two methods."""
    generate([])
    with open("run/metrics.csv", newline="") as handle:
        rows = [{k: v for k, v in row.items() if k not in NEW_COLUMNS} for row in csv.DictReader(handle)]
    config, words = Path("run/config.yaml").read_text(), []
    for speed, seed in itertools.product((1.0, 1.5), range(5)):
        folder = Path(f"made/{speed}-{seed}")
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.replace("seed: 1\n", f"seed: {seed}\n"))
        noise = np.random.default_rng(seed + int(10 * speed))
        with open(folder / "metrics.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(rows[0])
            writer.writerows(made_up(row, step, speed, noise) for step in range(30) for row in rows[:1])
        words.append(f"{'fast' if speed > 1 else 'slow'}={folder}")
    carv("compare", *words, "--out", "out")
    return comparison("out")


def made_up(row: dict[str, str], step: int, speed: float, noise: np.random.Generator) -> list[str]:
    """A line of metrics.csv: counts grow by one a step, all else rises to 1 with some noise."""
    counts = {"step": step + 1, "nfe": 2 * step + 2, "renders": step + 1}
    rising = [1 - np.exp(-0.1 * speed * step) + 0.02 * noise.standard_normal() for _ in row]
    return [str(counts.get(renamed(name), round(0.1 if "seconds" in name else y, 5))) for name, y in zip(row, rising)]


def comparison(folder: str) -> dict[str, Any]:
    """The tables of `carv compare`, without what a clock is in."""
    out: dict[str, Any] = {}
    for file, today in (("curves.csv", "curves"), ("final.csv", "final"), (TIME_TO_TARGET, "time to target")):
        with open(f"{folder}/{file}", newline="") as handle:
            rows = [{k: renamed(v) for k, v in row.items()} for row in csv.DictReader(handle)]
        rows = [r for r in rows if r.get("axis") != "seconds" and not r["metric"].startswith("seconds")]
        rows.sort(key=lambda r: (r["metric"], r.get("axis", ""), r["method"]))  # rows of one method keep their order
        for name in ("mean", "target", "baseline_at", "method_at", "ratio", "reached", "low", "high"):
            if name in rows[0]:
                out[f"{today}: {name}"] = [float(r[name] or "nan") for r in rows]
    return out


# carv attribute


def attribute(query: str, method: str, *more: str, run: list[str] | None = None) -> dict[str, Any]:
    """Scores of six small images, after a run of `carv generate` where `run` gives its options."""
    make_images("images", 6)
    if run is not None:
        generate(run)
    carv_attribute(
        query, "images", {"num_draws": 4, "query_draws": 16, "dim": 64},
        "--model", small_model(), "--method", method, "--store", "store", "--out", "out", *more,
    )  # fmt: skip
    return {
        "scores.csv": {k: v for k, v in columns("out/scores.csv").items() if not k.startswith("in_top")},  # is new
        **{p.name: np.load(p) for p in sorted(Path("store").rglob("rows.npy"))},
    }


def make_images(folder: str, count: int) -> None:
    """Images of 16 x 16, the even ones with a caption."""
    from PIL import Image

    Path(folder).mkdir()
    for i in range(count):
        array = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(array).save(f"{folder}/{i}.png")
        if i % 2 == 0:
            Path(f"{folder}/{i}.txt").write_text("a red mug\n")


case("attribute: an image by cosine", slow=True)(lambda: attribute("images/3.png", "cosine"))
case("attribute: an image by TRAK", slow=True)(lambda: attribute("images/2.png", "trak", "--prompt", "a red mug"))
case("attribute: a prompt by D-TRAK", slow=True)(lambda: attribute("a red mug", "d-trak", "--views", "2"))
case("attribute: a prompt by RelatIF", slow=True)(lambda: attribute("a cup", "relatif", "--views", "2", "--seed", "4"))
case("attribute: a run", slow=True)(lambda: attribute("run", "cosine", "--views", "2", run=[]))
WIDE = ["system.prompt_processor.fine_views=false", "system.prompt_processor.front_threshold=80"]
case("attribute: a run whose front is wide", slow=True)(lambda: attribute("run", "cosine", "--views", "8", run=WIDE))


# carv distill

DISTILL = ["batch_size=2", "num_draws=2", "preview_prompts=2", "preview_every=2", "device=cpu", "prompts=prompts.txt"]
DISTILLED = {
    "dmd": ["objective=dmd", "fake_updates=1"],
    "kl": ["objective=kl", "proposal=weight", "antithetic=true"],
    "kl, adaptive, global strata": ["objective=kl", "proposal=adaptive", "stratify=global", "num_draws=4"],
}


def distill(words: list[str], model: str = "") -> dict[str, Any]:
    """A whole run of two steps."""
    Path("prompts.txt").write_text("a red mug\na blue bottle\n")
    carv("distill", model or small_model(), *DISTILL, "steps=2", *words, "--seed", "2", "--out", "run")
    groups = {name: value for name, value in state("run/checkpoint").items() if name not in ("step", "started")}
    return {"metrics.csv": columns("run/metrics.csv"), **groups}


for name, words in DISTILLED.items():
    case(f"distill: {name}", slow=True)(functools.partial(distill, words))


TINY = ["steps=1", "batch_size=1", "preview_prompts=1", "preview_every=1", "fake_updates=1", "fake_draws=1"]
case("distill: carv-tiny", slow=True)(functools.partial(distill, TINY, "carv-tiny"))


@case("distill variance", slow=True)
def distill_variance() -> dict[str, Any]:
    """Eight pairs of three settings."""
    Path("prompts.txt").write_text("a red mug\na blue bottle\n")
    carv(
        "distill", "variance", small_model(), "--settings", "2x1,2x2+strat,1x4+antithetic", "--pairs", "8",
        "--budget", "600", "--out", "out", "device=cpu", "prompts=prompts.txt",
    )  # fmt: skip
    return columns("out/variance.csv")
