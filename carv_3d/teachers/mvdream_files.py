"""From the name of an MVDream model to the model: the package's own classes, and weights that are read as data."""

from __future__ import annotations

import importlib
from typing import Any

from carv_3d.errors import CarvError, first_line
from carv_3d.teachers.compvis_files import build_model, check_checkpoint, load_weights, read_model_config

INSTALL = "pip install git+https://github.com/bytedance/MVDream"
WHOLE = ("model.", "first_stage_model.")
NO_TEXT_ENCODER = {"target": "torch.nn.Identity"}  # whoever gives the text has its own


def load_mvdream(name: str, file: str | None = None) -> Any:
    """A model of the package `mvdream` without its text encoder, on the CPU.

    Args:
        name: in the package's table of models.
        file: of the weights; from the hub if None.

    Raises:
        CarvError: no package, no such model, or weights that cannot be had or do not fit.
    """
    try:
        zoo = importlib.import_module("mvdream.model_zoo")
    except ImportError as error:
        raise CarvError(f"MVDream needs the package mvdream ({first_line(error)}): {INSTALL}.") from error
    if name not in zoo.PRETRAINED_MODELS:
        raise CarvError(f"model_name is {name!r}; it must be one of {', '.join(zoo.PRETRAINED_MODELS)}.")
    known = zoo.PRETRAINED_MODELS[name]
    fix = f"install the package again: {INSTALL}."
    config, _ = read_model_config(str(zoo.get_config_file(known["config"])), ["mvdream"], fix)
    config["params"] = {**config["params"], "cond_stage_config": NO_TEXT_ENCODER}
    weights = check_checkpoint(file) if file else _from_hub(known["repo_id"], known["filename"])
    model = build_model(config, f"the package mvdream ({INSTALL})")
    load_weights(model, weights, WHOLE)
    return model


def _from_hub(repository: str, name: str) -> Any:
    hub = importlib.import_module("huggingface_hub")
    try:
        return check_checkpoint(hub.hf_hub_download(repo_id=repository, filename=name))
    except Exception as error:  # of the library's own kinds
        raise CarvError(
            f"{name} of {repository} cannot be had from the hub ({first_line(error)}): name a local file as ckpt_path."
        ) from error
