"""Checkpoints that survive a kill, a full disk and a truncated file.

A checkpoint is a nested dict of tensors, numbers and strings, saved with `torch.save` and read with
`weights_only=True`, so that a checkpoint from elsewhere cannot run code. The one before the newest is kept
next to it as `<name>.previous`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carv_3d.errors import CarvError, first_line, shown
from carv_3d.io.files import explain_os_error, write_atomic
from carv_3d.io.structured import RESTORE
from carv_3d.io.tensor_files import check_finite, load_plain
from carv_3d.runs.names import previous_path

FORMAT = 1
BEGIN_AGAIN = "begin again without --resume and with a new --out"
RENAMED = {"unet_rows": "nfe"}  # entries of the states that version 0.1.0 wrote


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; the checkpoint that was there becomes `<name>.previous`.

    At every moment at least one whole checkpoint is on the disk (after the first).

    Raises:
        CarvError: the disk is full or the place cannot be written; the older checkpoints are intact.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "state": state}, buffer)
    fresh = path.with_name(path.name + ".new")
    try:
        write_atomic(fresh, buffer.getvalue())
        if path.exists():
            os.replace(path, previous_path(path))
        os.replace(fresh, path)
    except OSError as error:
        raise explain_os_error(error, path) from error


def resumed_state(
    path: Path, resume: bool, say: Callable[[str], None], fix: str = BEGIN_AGAIN
) -> dict[str, Any] | None:
    """What a run begins from: the state at `path` where it is to be resumed and has one, or None.

    say: called where it was not the newest, or where there is none. fix and what is raised: as of `load_checkpoint`.
    """
    if not resume:
        return None
    if not has_checkpoint(path):
        say("The run had not come to a checkpoint: it begins again.")
        return None
    state, note = load_checkpoint(path, resuming=True, fix=fix)
    if note:
        say(f"Note: {note}.")
    return state


def has_checkpoint(path: Path) -> bool:
    """Whether one was written at `path`, whole or not."""
    return path.exists() or previous_path(path).exists()


def load_checkpoint(path: Path, resuming: bool = False, fix: str = BEGIN_AGAIN) -> tuple[dict[str, Any], str | None]:
    """The newest whole checkpoint at `path`, on the CPU, and a sentence where it was not the newest.

    resuming: the next one will be saved there, so a damaged newest is set aside as `<name>.damaged`: it must not become
        the one that is kept next to that.
    fix: what the message ends in where none can be read.

    Returns:
        `(state, note)`: note is None, or says that `path` is damaged and the previous one was taken.

    Raises:
        CarvError: there is none, or none that can be read, or one of a newer release.
    """
    damaged: list[str] = []
    for candidate in (path, previous_path(path)):
        if not candidate.exists():
            continue
        try:
            content = load_plain(candidate, RESTORE)
            version, state = int(content["format"]), _renamed(content["state"])
            if version <= FORMAT:
                _check_state(state)
        except Exception as error:  # torch raises many kinds for a damaged file: pickle, zip, Runtime, EOF
            # what torch and pickle say is of their insides, and names ways to load that are not safe
            why = first_line(error) if isinstance(error, CarvError) else "it cannot be read"
            damaged.append(f"{candidate.name} ({why})")
            continue
        if version > FORMAT:
            raise CarvError(f"{candidate} was written by a newer carv_3d (format {version}); update it")
        note = None
        if damaged:
            note = f"{path.name} is truncated or damaged; resuming from the one before it, {candidate.name}"
            if resuming:
                _set_aside(path)
        return state, note
    if damaged:
        raise CarvError(f"no checkpoint in {path.parent} can be read: {', '.join(damaged)}; {fix}")
    raise CarvError(f"there is no checkpoint at {path}")


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    """The state with today's names, where a run of version 0.1.0 wrote it."""
    return {RENAMED.get(k, k): _renamed(v) if k == "host" else v for k, v in state.items()}


def _check_state(state: dict[str, Any]) -> None:
    """CarvError where a state can be none of ours: empty, at no whole step, or with numbers that are not finite."""
    step = state.get("step", 0)
    if not state or type(step) is not int or not 0 <= step < 2**53:
        raise CarvError(f"its step is {shown(step)}" if state else "it holds nothing")
    leaves = dict(_leaves(state, "state"))
    check_finite({name: value for name, value in leaves.items() if isinstance(value, Tensor)}, "it", RESTORE)
    for name, value in leaves.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise CarvError(f"its {name} is {value}")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What is no dict and no list, by its path."""
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}")
    else:
        yield name, value


@contextmanager
def state_fits(what: str, state: Any, own: Any) -> Iterator[None]:
    """Within, `state` is taken back by what has the state `own`.

    Raises:
        CarvError: speaking of `what` ("these options"), where the two differ in kind or shape, or anything else in the
            block does not fit.
    """
    try:
        _check_like(state, own, "the state")
        yield
    except CarvError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CarvError(
            f"the checkpoint does not fit {what} ({first_line(error).rstrip(':')}); restore its own, or begin a new run"
        ) from error


def _check_like(state: Any, own: Any, name: str) -> None:
    """ValueError where two states differ in kind or shape; what one of them has not is no difference."""
    if isinstance(own, Tensor):
        fits = isinstance(state, Tensor) and state.is_floating_point() == own.is_floating_point()
        fits = fits and state.layout == own.layout and (state.shape == own.shape or not own.is_floating_point())
    elif isinstance(own, (dict, list, tuple)):
        fits = isinstance(state, dict) if isinstance(own, dict) else isinstance(state, (list, tuple))
    else:
        fits = own is None or isinstance(state, str if isinstance(own, str) else Real)
    if not fits:
        given = f"{tuple(state.shape)}" if isinstance(state, Tensor) else shown(state, 40)
        due = f"a tensor {tuple(own.shape)}" if isinstance(own, Tensor) else f"a {type(own).__name__}"
        raise ValueError(f"{name} is {given}, and {due} is due")
    if isinstance(own, dict):
        for key in own.keys() & state.keys():
            _check_like(state[key], own[key], f"{name}'s {key}" if name == "the state" else f"{name}.{key}")
    elif isinstance(own, (list, tuple)) and len(own) == len(state):
        for i, (theirs, ours) in enumerate(zip(state, own)):
            _check_like(theirs, ours, f"{name}.{i}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take back what an optimizer has measured, and its rates; decays stay as they are.

    Raises:
        ValueError: of other shapes than the parameters.
    """
    own, theirs = optimizer.state_dict()["param_groups"], state["param_groups"]
    groups = [{**ours, "lr": float(group["lr"])} for ours, group in zip(own, theirs)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, kept in optimizer.state.items():
        shapes = {tuple(value.shape) for value in kept.values() if value.dim()}
        if shapes - {tuple(parameter.shape)}:
            raise ValueError(f"the optimizer's {min(shapes)} for a parameter of {tuple(parameter.shape)}")


def _set_aside(path: Path) -> None:
    try:
        os.replace(path, path.with_name(path.name + ".damaged"))
    except FileNotFoundError:  # another of the run's processes was first
        pass
    except OSError as error:
        raise explain_os_error(error, path) from error


def check_made_with(path: Path, state: Mapping[str, Any], made_with: Mapping[str, Any], fix: str) -> None:
    """CarvError, ending in `fix`, where the checkpoint at `path` was made with other values than these."""
    stored = state.get("made_with", {})
    differs = [key for key in made_with if stored.get(key) != made_with[key]]
    if differs:
        raise CarvError(f"{path} was made with other values of {', '.join(differs)}: {fix}.")


def module_fingerprint(module: nn.Module, *more: Tensor, config: Mapping[str, Any] | None = None) -> str:
    """A short hash of a module's parameters with their names, of further tensors, and of a configuration.

    The configuration is plain data; names with an underscore before them (a folder, a release) do not count.
    """
    counted = {k: v for k, v in sorted((config or {}).items()) if not k.startswith("_")}
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True, default=str).encode() if counted else b"")
    for name, p in [*module.named_parameters(), *((str(i), x) for i, x in enumerate(more))]:
        digest.update(f"{name} {tuple(p.shape)} {p.dtype}".encode())
        digest.update(p.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
