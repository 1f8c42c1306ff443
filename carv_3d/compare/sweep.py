"""A comparison that makes its runs: prompts x methods x seeds, each for the same seconds of training time.

OUT/sweep.yaml                       what was asked for
OUT/runs/METHOD/NN-PROMPT-SEED/      a run's folder, as `carv generate` leaves one; result.json says it is done
OUT/compare.html, *.csv, *.png       made from the runs, at the end
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carv_3d.compare.methods import Method, method_key
from carv_3d.compare.request import SweepOptions
from carv_3d.compare.scored_run import RESULT, Length
from carv_3d.config.reader import to_mapping
from carv_3d.core.options import option
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config, find_config, load_run, settled
from carv_3d.io.files import check_unused, explain_os_error, locked, make_folder, slug, write_atomic
from carv_3d.io.structured import conforms, differing_keys, look_up, read_json, read_text
from carv_3d.runs.run import CONFIG

FORMAT = 2
SPEC = "sweep.yaml"
MOST_PROMPTS = 500
GROWING = ("prompts", "seeds")  # what may be added to a sweep that is there


@dataclass(frozen=True)
class Sweep(SweepOptions):
    """What is run.

    `config` lies under `common`, and both under a method's own overrides. Schedules (timesteps, learning rate) are laid
    over the budget, or over the steps, unless a method or `common` fixes trainer.max_steps.
    """

    prompts: list[str]
    methods: list[Method]
    common: list[str] = option(list, "Overrides of all methods.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prompts) > MOST_PROMPTS:
            raise CarvError(f"there are {len(self.prompts):,} prompts; a comparison has {MOST_PROMPTS} at most.")

    @property
    def length(self) -> Length:
        """Of each run."""
        return Length(self.budget, self.steps, self.points)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(index of the prompt, seed): what is run interleaved, all methods of each."""
        return [(p, seed) for seed in range(self.seeds) for p in range(len(self.prompts))]

    def folder(self, out: Path, method: Method, prompt: int, seed: int) -> Path:
        """Where one run lies in `out`."""
        return out / "runs" / method.folder / f"{prompt:02d}-{slug(self.prompts[prompt])}-{seed}"

    def left(self, out: Path) -> list[tuple[int, int]]:
        """The groups with a run that is not done."""
        return [g for g in self.groups if any(not (self.folder(out, m, *g) / RESULT).exists() for m in self.methods)]

    def configuration(self, method: Method, prompt: int, seed: int) -> Config:
        """Of one run."""
        own = [f"trainer.max_steps={self.steps}"] if self.steps and not self.fixes_steps(method) else []
        return method.load(self.prompts[prompt], seed, [*self.common, *own], self.config)

    def fixes_steps(self, method: Method) -> bool:
        """Whether trainer.max_steps was given as an option (a file's does not count)."""
        return any(word.startswith("trainer.max_steps=") for word in [*self.common, *method.overrides])

    def run_length(self, method: Method) -> Length:
        """Of one method's runs."""
        return replace(self.length, scheduled=not self.fixes_steps(method))


def checked(sweep: Sweep) -> Sweep:
    """The sweep with whole names of options; reads every method's configuration for every prompt.

    Raises:
        CarvError: for the first mistake.
    """
    from carv_3d.generate.trainer import check_prompt

    common = [word.partition("=") for word in sweep.common]
    whole = [f"{method_key(key.strip(), 'all methods')}={value}" for key, _, value in common]
    sweep = replace(sweep, common=whole)
    for word in [*sweep.common, *(w for method in sweep.methods for w in method.overrides)]:
        key = word.partition("=")[0]
        if key == "logger" or key.startswith(("checkpoint.", "trainer.val_check")):
            raise CarvError(f"{key} has no part in a comparison, whose runs are scored and saved --points times")
    for prompt in range(len(sweep.prompts)):
        for method in sweep.methods:
            check_prompt(sweep.configuration(method, prompt, 0))
    return sweep


def open_folder(sweep: Sweep, out: Path) -> Sweep:
    """Begin a sweep's folder, or resume the one in it: prompts and seeds may be added, nothing else may change.

    Raises:
        CarvError: the folder holds something else, or another sweep.
    """
    path = out / SPEC
    try:
        if not path.exists():
            check_unused(out)
            make_folder(out)
            save(sweep, out)
            return sweep
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    make_folder(out)
    stored = read_json(path, "choose another --out")
    if not (conforms(stored.get("prompts"), list[str]) and conforms(stored.get("seeds"), int)):
        raise CarvError(f"{path} has no prompts and seeds, so it is of no comparison; choose another --out")
    asked = describe(sweep)
    for key, value in asked.items():
        if key not in GROWING and stored.get(key) != value:
            raise CarvError(
                f"the comparison in {out} has {key} = {_short(stored.get(key))}, and not {_short(value)}; "
                "leave it as it was, or choose another --out"
            )
    prompts = list(dict.fromkeys([*stored["prompts"], *sweep.prompts]))
    try:
        sweep = replace(sweep, prompts=prompts, seeds=max(sweep.seeds, stored["seeds"]))
        checked(sweep)
    except CarvError as error:
        raise CarvError(f"{path}: {error}") from error
    save(sweep, out)
    return sweep


def check_runs(sweep: Sweep, out: Path) -> None:
    """CarvError for a run in the sweep's folder that has the configuration of another."""
    for method in sweep.methods:
        for group in sweep.groups:
            folder = sweep.folder(out, method, *group)
            if not (folder / CONFIG).exists():
                continue
            stored = load_run(folder)
            asked = settled(sweep.configuration(method, *group), stored.system.geometry_type)
            has, due = to_mapping(stored), to_mapping(asked)
            key = next(iter(differing_keys(has, due)), None)
            if key is not None:
                raise CarvError(
                    f"{folder / CONFIG} has {key} = {_short(look_up(has, key))}, and that run of method {method.name} "
                    f"has {_short(look_up(due, key))}, so it is another's; delete {folder}, and it is made again"
                )


def save(sweep: Sweep, out: Path) -> None:
    """Write OUT/sweep.yaml (JSON, which YAML reads); CarvError where a sweep is at work there."""
    with locked(out):
        write_atomic(out / SPEC, json.dumps(describe(sweep), indent=2, ensure_ascii=False) + "\n")


def describe(sweep: Sweep) -> dict[str, Any]:
    """A sweep as plain data. Files are read in, so that a change to one is noticed."""
    files = {m.name: m.config or sweep.config for m in sweep.methods}
    return {
        "format": FORMAT,
        "prompts": sweep.prompts,
        "seeds": sweep.seeds,
        "budget": sweep.budget,
        "steps": sweep.steps,
        "points": sweep.points,
        "methods": {m.name: m.overrides for m in sweep.methods},
        "files": {name: read_text(find_config(path)) if path else "" for name, path in files.items()},
        "common": sweep.common,
        "clip": sweep.clip,
    }


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
