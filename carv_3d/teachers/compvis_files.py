"""From a configuration in CompVis' format and a file of weights to a model, whose classes are the host's."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from carv_3d.core.options import Options, option
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line, shown
from carv_3d.io.files import expanded
from carv_3d.io.structured import read_yaml
from carv_3d.io.tensor_files import check_finite, load_checkpoint
from carv_3d.teachers.model_folder import check_weight_file

MEND = "name a whole checkpoint, a .ckpt, .pt or .safetensors file."


@dataclass(frozen=True, kw_only=True)
class CompVisConfig(Options):
    """What of `model.params` is read here; the rest is the model's own."""

    timesteps: int = option(1000, "T of its training.", least=1, most=10**6)
    linear_start: float = option(1e-4, "The first beta.", above=0, below=1)
    linear_end: float = option(2e-2, "The last beta.", above=0, below=1)
    use_ema: bool = option(True, "Whether its checkpoints hold running means.")

    @property
    def schedule(self) -> NoiseSchedule:
        """That of its training: what CompVis calls linear is linear in the root of beta."""
        return NoiseSchedule.scaled_linear(self.timesteps, self.linear_start, self.linear_end)


def read_model_config(path: str, packages: Sequence[str], fix: str) -> tuple[dict[str, Any], CompVisConfig]:
    """The `model` of a configuration: its class as `target`, and `params`, the second checked as well.

    Args:
        path: of the YAML file.
        packages: where its classes may come from; a name elsewhere could be any code.
        fix: what messages end in.

    Raises:
        CarvError: no such file, something missing, or a class of another package.
    """
    model: Any = read_yaml(expanded(path), fix).get("model")
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict) or "target" not in model:
        raise CarvError(f"{path} must hold model.target and model.params, a group; {fix}")
    _check_targets(model, path, packages, fix)
    known = {name: value for name, value in params.items() if name in CompVisConfig.declared()}
    try:
        return dict(model), CompVisConfig(**known)
    except CarvError as error:
        raise CarvError(f"{path}: model.params: {str(error).rstrip('.')}; {fix}") from None


def _check_targets(node: Any, path: str, packages: Sequence[str], fix: str) -> None:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check_targets(value, path, packages, fix)
    target = node.get("target") if isinstance(node, dict) else None
    known = isinstance(target, str) and any(target.startswith(f"{name}.") for name in (*packages, "torch.nn"))
    if target is not None and not known:
        raise CarvError(
            f"{path} names the class {shown(target)}, and only those of {' and '.join(packages)} are made; {fix}"
        )


def build_model(config: Mapping[str, Any], source: str) -> Any:
    """The model of `read_model_config`, on the CPU, with random weights.

    Args:
        config: with `target` and `params`, as a dict or OmegaConf's.
        source: which software has the classes, for messages.

    Raises:
        CarvError: it cannot be imported, or refuses the parameters.
    """
    target = str(config["target"])
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**config.get("params", {}))
    except (ImportError, AttributeError) as error:
        raise CarvError(
            f"{target} cannot be imported ({first_line(error)}): it comes with {source}; install what that needs in "
            "the environment that runs this."
        ) from error
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise CarvError(f"{target} refuses the parameters of its configuration ({first_line(error)}).") from error


def check_checkpoint(path: str) -> Path:
    """The file of that name. Raises CarvError for none, or a git-lfs pointer, before anything is loaded."""
    file = expanded(path)
    if not file.is_file():
        raise CarvError(f"no weights at {path}: there is no such file; {MEND}")
    check_weight_file(file)
    return file


def load_weights(model: Any, file: Path, needs: Sequence[str] = (), averaged: bool = False) -> None:
    """Read a checkpoint into a model.

    Args:
        model: from `build_model`.
        file: .safetensors, or torch's.
        needs: beginnings of the names that must all be there; "" for every name.
        averaged: the denoiser's weights are the running means (`model_ema.*`) where the file has them.

    Raises:
        CarvError: naming the file: it cannot be read, lacks tensors, or they have other shapes.
    """
    tensors = load_checkpoint(file, MEND)
    own = model.state_dict()
    tensors = {key: value for key, value in (_with_averages(tensors) if averaged else tensors).items() if key in own}
    missing = [key for key in own if key.startswith(tuple(needs)) and key not in tensors]
    if missing:
        raise CarvError(
            f"{file} lacks {len(missing)} of the tensors that its configuration asks for, such as {missing[0]}; {MEND}"
        )
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise CarvError(
                f"{file}: {key} has the shape {tuple(value.shape)}, and its configuration asks for "
                f"{tuple(own[key].shape)}; name the configuration that goes with it."
            )
    check_finite(tensors, str(file), MEND)
    model.load_state_dict(tensors, strict=False)


def _with_averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the running means in place of those that have one, whose names lack the points."""
    prefix = "model."
    means = {key: "model_ema." + key[len(prefix) :].replace(".", "") for key in tensors if key.startswith(prefix)}
    return tensors | {key: tensors[mean] for key, mean in means.items() if mean in tensors}
