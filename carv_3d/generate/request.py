"""What `carv generate` was asked for, made into a configuration and a folder; nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carv_3d.config.reader import differing_keys, look_up, read_options, to_mapping
from carv_3d.errors import CarvError
from carv_3d.generate.config import Config, load_config
from carv_3d.io.files import check_unused, newest_run, slug, unused

# What --resume may change: how long, what is shown and where, but not what is being computed.
CHANGEABLE = (
    "trainer.",
    "checkpoint.",
    "system.exporter.",
    "device",
    "data.eval_",
    "data.n_test_views",
    "system.renderer.eval_chunk_rays",
    "system.guidance.max_batch",
)


@dataclass
class Request:
    """What `carv generate` was asked for."""

    prompt: str | None = None
    config: Path | None = None
    out: Path | None = None
    seed: int | None = None
    resume: bool = False
    overrides: Sequence[str] = field(default_factory=list)


def resolve(request: Request) -> tuple[Config, Path]:
    """The configuration and the folder of a request; nothing is written.

    Raises:
        CarvError: a bad option, a folder that is in use, nothing to resume, or a resume that would change
            what is computed.
    """
    if not request.resume:
        config = load_config(request.config, request.overrides, request.prompt, request.seed)
        return config, _new_folder(request, config)
    folder = request.out or _latest_folder(request)
    stored_path = folder / "config.yaml"
    if not stored_path.exists():
        raise CarvError(f"there is no run to resume in {folder}; begin one without --resume")
    stored = load_config(stored_path)
    base = request.config or stored_path
    seed = stored.seed if request.seed is None else request.seed
    config = load_config(base, request.overrides, request.prompt or stored.prompt, seed)
    if config.system.geometry_type == "auto":
        config = read_options(config, {"system": {"geometry_type": stored.system.geometry_type}})
    old, new = to_mapping(stored), to_mapping(config)
    for key in differing_keys(old, new):
        if not key.startswith(CHANGEABLE):
            raise CarvError(
                f"the run in {folder} has {key} = {look_up(old, key)!r}, and --resume cannot change it to "
                f"{look_up(new, key)!r}; leave it, or begin a new run with another --out"
            )
    return config, folder


def _default_folder(prompt: str, seed: int) -> Path:
    return Path("outputs") / f"{slug(prompt)}-{seed}"


def _new_folder(request: Request, config: Config) -> Path:
    if request.out is not None:
        check_unused(request.out, "choose another --out, or go on with the run in it with --resume")
        return request.out
    return unused(_default_folder(config.prompt, config.seed))


def _latest_folder(request: Request) -> Path:
    """The newest of this prompt's default folders."""
    config = load_config(request.config, request.overrides, request.prompt, request.seed)
    return newest_run(_default_folder(config.prompt, config.seed))
