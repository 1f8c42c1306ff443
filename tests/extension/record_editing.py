"""Records what threestudio's ControlNet and InstructPix2Pix guidances give, for the tests of the extension's.

    PYTHON tests/extension/record_editing.py CHECKOUT

PYTHON has threestudio's packages. The ControlNet and the detectors, which threestudio names itself, are exchanged.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

import record_parity as stock
import recorded_editing as editing
import recorded_parity as recorded
import torch
from torch import Tensor


class Recorder(stock.Recorder):
    """threestudio, and what has been recorded of one guidance."""

    def __init__(self, checkout: Path, kind: str, models: dict[str, Path]) -> None:
        self.host, self.kind = stock.cpu_host.enter(checkout), kind
        self.model = str(models["sd"])
        self.names = {"ip2p_name_or_path": str(models["pix2pix"])}
        if kind == editing.CONTROLNET:
            self.names = {"pretrained_model_name_or_path": self.model}
        self.tensors: dict[str, Tensor] = {}
        stock_options = vars(self.host.find(kind).Config())
        self.facts: dict[str, Any] = {kind: stock_options, "weights": editing.weights(models, kind), "cases": {}}

    def stock(self, kind: str, **options: Any) -> Any:
        """threestudio's guidance, its options as from a YAML file."""
        from omegaconf import OmegaConf

        own = {**self.names, "ddim_scheduler_name_or_path": self.model, "half_precision_weights": False, **options}
        guidance = self.host.find(kind)(OmegaConf.create(own))
        guidance.update_step(0, recorded.STEP)
        return guidance


def exchange_names(controlnet: Path) -> None:
    """Has threestudio's module load this ControlNet, and detectors that need no weights."""
    import cv2
    from threestudio.models.guidance import controlnet_guidance as module

    load = module.ControlNetModel.from_pretrained
    module.ControlNetModel = types.SimpleNamespace(from_pretrained=lambda name, **how: load(str(controlnet), **how))
    module.NormalBaeDetector = editing.Negative
    module.CannyDetector = lambda: cv2.Canny  # as controlnet_aux's was when threestudio's was written


def record(recorder: Recorder, cases: dict[str, dict[str, Any]]) -> None:
    """Each case's gradient, or its edited image."""
    cfg = {"pretrained_model_name_or_path": recorder.model, "prompt": "a mug", "negative_prompt": "bad", "spawn": False}
    utils = recorder.host.find("stable-diffusion-prompt-processor")(cfg)()
    recorder.tensors["text"] = utils.get_text_embeddings(*[torch.zeros(1)] * 3, False)
    for case, options in cases.items():
        guidance = recorder.stock(recorder.kind, **options)
        rgb, cond = editing.images()
        t, eps, posterior = editing.draws(case, options, guidance.min_step, guidance.max_step)
        if options.get("control_type") == "canny":
            recorder.tensors[f"control {case}"] = guidance.prepare_image_cond(cond)
        with stock.drawn(guidance, [t.clone()], [eps], posterior):
            out = guidance(rgb, cond, utils)
        if "edit_images" in out:
            recorder.tensors[f"{case}: edit_images"] = out["edit_images"]
            recorder.facts["cases"][case] = {"t": t.tolist(), "options": options}
        else:
            recorder.keep(case, out, rgb, t=t.tolist(), options=options)


def main() -> None:
    """Record everything and write two pairs of files."""
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        os.chdir(folder)
        models = editing.write_models(Path(folder))
        for kind, name, more in (
            (editing.CONTROLNET, "controlnet", editing.EDGES),
            (editing.PIX2PIX, "instructpix2pix", {}),
        ):
            recorder = Recorder(checkout, kind, models)
            if kind == editing.CONTROLNET:
                exchange_names(models["controlnet"])
            record(recorder, {**editing.OPTIONS, **more})
            recorder.write(recorded.FOLDER / f"{name}.safetensors", recorded.FOLDER / f"{name}.json")


if __name__ == "__main__":
    main()
