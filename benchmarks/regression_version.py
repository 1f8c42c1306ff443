"""What cases ask of the version that they run on: 42e1110, before the packages, or today's."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import carv_3d

ROOT = Path(carv_3d.__file__).resolve().parents[1]
IS_OLD = importlib.util.find_spec("carv_3d.core.options") is None
MODULES = {  # today's -> 42e1110's
    "generate.config": "config",
    "guidance.sds": "guidance",
    "guidance.vsd": "vsd",
    "runs.checkpoint": "checkpoint",
    "teachers.lora_score": "teachers.lora_student",
}
# Columns, entries of checkpoints and options of commands: 42e1110's -> today's.
RENAMED = {
    "unet_rows": "nfe",
    "judge_object": "classifier_object",
    "judge_colour": "classifier_color",
    "judge_finish": "classifier_material",
    "picture": "image",
    "samples": "rows",  # today's -> 42e1110's, which the recording holds
}
TIME_TO_TARGET = "reach.csv" if IS_OLD else "time_to_target.csv"


def module(name: str) -> ModuleType:
    """A module by today's name below `carv_3d`."""
    return importlib.import_module(f"carv_3d.{MODULES.get(name, name) if IS_OLD else name}")


def carv(*words: str) -> None:
    """Run `carv WORDS`; RuntimeError unless it ends well. preview.png shows the field, and not the asset as today's."""
    cli: Any = importlib.import_module("carv_3d.cli" if IS_OLD else "carv_3d.cli.main")
    with contextlib.nullcontext() if IS_OLD else _field_images():
        status = cli.main(list(words))
    if status != 0:
        raise RuntimeError(f"carv {' '.join(words)} ended with {status}")


@contextlib.contextmanager
def _field_images() -> Iterator[None]:
    run = module("generate.run").SceneRun
    shots = run._shots
    run._shots = lambda self, n_views, asset=None: shots(self, n_views, None)
    try:
        yield
    finally:
        run._shots = shots


def config(name: str) -> str:
    """A configuration of the project's own, as `--config` takes it."""
    return str(ROOT / "configs" / f"{name}.yaml") if IS_OLD else name


def carv_variance(source: str, renders: str, draws: str, options: Sequence[str], *more: str) -> None:
    """`carv variance SOURCE` in the words of the version."""
    sizes = ["--grid", f"R={renders}", f"K={draws}"] if IS_OLD else ["--renders", renders, "--draws", draws]
    carv("variance", source, *more, *sizes, *(["--set"] if IS_OLD and options else []), *options)


def carv_compare(methods: Sequence[str], options: Sequence[str], *more: str) -> None:
    """`carv compare` of new runs in the words of the version."""
    named = ["--methods", *methods] if IS_OLD else [word for m in methods for word in ("--method", m)]
    set_for_all = [word for option in options for word in (["--set", option] if IS_OLD else [option])]
    carv("compare", *more, *named, *set_for_all)


def carv_attribute(query: str, images: str, options: dict[str, int], *more: str) -> None:
    """`carv attribute QUERY` in the words of the version."""
    flags = {"num_draws": "--draws", "query_draws": "--query-draws", "dim": "--dim"}
    given = [(flags[k], str(v)) if IS_OLD else (f"{k}={v}",) for k, v in options.items()]
    given += [] if IS_OLD else [("parameters=all",)]  # the only ones of version 0.1.0
    carv("attribute", query, "--data" if IS_OLD else "--training-images", images, *more, *(w for g in given for w in g))


def batches(folder: str) -> dict[str, Any]:
    """What `carv variance` measured: by step, V_in, s_out^2 and norms of each batch."""
    kept = json.loads((Path(folder) / ("blocks.json" if IS_OLD else "batches.json")).read_text())
    inside, outside = ("inside", "outside") if IS_OLD else ("v_in", "s_out2")
    return {
        f"step {step}": [{"v_in": b[inside], "s_out2": b[outside], "norms": b["norms"]} for b in figures]
        for step, figures in kept["blocks" if IS_OLD else "batches"].items()
    }


def variance_rows(sizes: Sequence[tuple[int, int, str]], measured: Sequence[dict[str, Any]]) -> list[Any]:
    """The rows of `carv variance` from batches that are given, against the first of the settings."""
    settings_module = module("variance.study" if IS_OLD else "variance.methods")
    settings = [
        (settings_module.Entry if IS_OLD else settings_module.Setting)(R, K, module("variance.methods").method(name))
        for R, K, name in sizes
    ]
    batch = settings_module.Block if IS_OLD else module("variance.benchmark").Batch
    names = {"v_in": "inside", "s_out2": "outside"} if IS_OLD else {}
    made = [batch(**{names.get(k, k): v for k, v in figures.items()}) for figures in measured]
    table: list[Any] = module("variance.figures").rows(10, settings, made, settings[0])
    return table


def renamed(name: str) -> str:
    """Today's name of a column or an entry."""
    return RENAMED.get(name, name)


def sds_guidance(teacher: Any, options: dict[str, Any]) -> Any:
    """`SDSGuidance` with these options."""
    sds = module("guidance.sds")
    return sds.SDSGuidance(teacher, sds.GuidanceOptions(**options))


def vsd_guidance(teacher: Any, score: Any, options: dict[str, Any]) -> Any:
    """`VSDGuidance` with these options."""
    vsd = module("guidance.vsd")
    return vsd.VSDGuidance(teacher, score, vsd.VSDOptions(**options))


def lora_score(denoiser: Any, rank: int) -> Any:
    """The trained score of `VSDGuidance`."""
    lora_score = module("teachers.lora_score")
    return (lora_score.LoraStudent if IS_OLD else lora_score.LoraScore)(denoiser, rank)


def sds_loss(latents: Any, eps_hat: Any, schedule: Any, cond: Any, generator: Any, **options: Any) -> Any:
    """`carv_3d.sds_loss`."""
    return carv_3d.sds_loss(latents, eps_hat, schedule, cond=cond, generator=generator, **options)


def host_double() -> ModuleType:
    """The version's own double of threestudio, which loads the version's own extension."""
    return from_file(ROOT / "tests" / "extension" / "host_double.py", "regression_host_double")


def from_file(path: Path, name: str) -> ModuleType:
    """A module by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses look there
    spec.loader.exec_module(loaded)
    return loaded
