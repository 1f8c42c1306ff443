"""`carv-vsd-guidance` and threestudio's own, in one process: the same LoRA and draws, the same gradients.

Runs on packages whose diffusers threestudio's own guidance can still use
(below 0.20: its LoRAAttnProcessor takes a hidden_size).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carv_3d.core.estimator import Draws

B = 2
LAYERS = ("to_q", "to_k", "to_v", "to_out")


@pytest.fixture(scope="module")
def stock_class(threestudio: Any) -> Any:
    from diffusers.models.attention_processor import LoRAAttnProcessor

    try:
        LoRAAttnProcessor(hidden_size=8)
    except TypeError:
        pytest.skip("threestudio's own VSD does not run on this diffusers, so there is nothing to compare with")
    return threestudio.find("stable-diffusion-vsd-guidance")


def share_lora(stock: Any, ours: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Gives both the same LoRA and camera embedding; returns the pairs of parameters by name."""
    pairs = {}
    source = torch.Generator().manual_seed(5)
    for key, processor in stock.unet_lora.attn_processors.items():
        for layer in LAYERS:
            name = key.replace(".processor", f".{layer}" + (".0" if layer == "to_out" else "")).replace(".", "_")
            theirs, own = getattr(processor, f"{layer}_lora"), ours.lora.layers[name]
            theirs.up.weight.data = 0.3 * torch.randn(theirs.up.weight.shape, generator=source)
            for side in ("up", "down"):
                pairs[f"{name}_{side}"] = (getattr(theirs, side).weight, getattr(own, side).weight)
    embedding = stock.camera_embedding.module
    for i, linear in ((0, embedding.linear_1), (2, embedding.linear_2)):
        own = ours.lora.camera_embedding[i]
        pairs |= {f"camera_{i}_{side}": (getattr(linear, side), getattr(own, side)) for side in ("weight", "bias")}
    assert len(pairs) == len(list(ours.lora.parameters()))
    for theirs, own in pairs.values():
        own.data.copy_(theirs.data)
    return pairs


@pytest.mark.parametrize(
    "options",
    [{}, {"guidance_scale_lora": 2.5}, {"camera_condition_type": "mvp", "lora_cfg_training": False},
     {"use_img_loss": True}, {"lora_n_timestamp_samples": 3}],
    ids=str,
)  # fmt: skip
def test_one_draw_gives_the_stock_gradients(
    options: dict[str, Any], stock_class: Any, threestudio: Any, sd_folder_512: Path, v_folder_512: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    prompt = {"pretrained_model_name_or_path": str(sd_folder_512), "prompt": "a mug", "spawn": False}
    utils = threestudio.find("stable-diffusion-prompt-processor")(prompt)()
    # threestudio writes out 1280 for the width of the time embedding; these UNets have another
    from diffusers import UNet2DConditionModel
    from diffusers.models.embeddings import TimestepEmbedding

    module = __import__(stock_class.__module__, fromlist=["TimestepEmbedding"])
    unet = UNet2DConditionModel.from_pretrained(str(v_folder_512), subfolder="unet")
    width = unet.time_embedding.linear_2.out_features
    monkeypatch.setattr(module, "TimestepEmbedding", lambda a, b: TimestepEmbedding(a, width))
    cfg = {"pretrained_model_name_or_path": str(sd_folder_512), "pretrained_model_name_or_path_lora": str(v_folder_512),
           "half_precision_weights": False, **options}  # fmt: skip
    stock = stock_class(cfg)
    ours = threestudio.find("carv-vsd-guidance")(
        {**cfg, "num_draws": 1, "proposal": "uniform", "stratify": "none", "lora_max_batch": 2}
    )
    pairs = share_lora(stock, ours)
    source = torch.Generator().manual_seed(3)
    rgb = torch.rand(B, 64, 64, 3, generator=source).requires_grad_()
    n = options.get("lora_n_timestamp_samples", 1)
    eps, posterior = (torch.randn(B, 4, 64, 64, generator=source) for _ in range(2))
    t, t_lora = torch.tensor([150, 700]), torch.randint(0, 1000, (n, B), generator=source)
    eps_lora = torch.randn(n, B, 4, 64, 64, generator=source)
    batch = {
        "elevation": torch.full((B,), 15.0), "azimuth": torch.tensor([30.0, 100.0]),
        "camera_distances": torch.full((B,), 1.8), "c2w": torch.randn(B, 4, 4, generator=source),
        "mvp_mtx": torch.randn(B, 4, 4, generator=source),
    }  # fmt: skip
    kind = type(stock.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean + self.std * posterior)
    # no camera is dropped, on either side
    monkeypatch.setattr(module.random, "random", lambda: 0.5)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.ones(*size))
    with monkeypatch.context() as patch:
        times, noises = iter([t, t_lora.flatten()]), iter([eps, eps_lora.flatten(0, 1)])
        patch.setattr(torch, "randint", lambda *_, **__: next(times))
        patch.setattr(torch, "randn_like", lambda *_, **__: next(noises))
        expected = stock(rgb, utils, **batch)
    carv = ours._carv
    monkeypatch.setattr(carv.sds.estimator, "draw", lambda *_, **__: Draws(t[:, None], eps[:, None]))
    # theirs has the renders along the faster axis
    monkeypatch.setattr(carv.training, "draw", lambda *_, **__: Draws(t_lora.T, eps_lora.transpose(0, 1)))
    actual = ours(rgb, utils, **batch)
    assert actual["grad_norm"] == pytest.approx(expected["grad_norm"].item(), rel=1e-5)
    assert actual["loss_lora"].item() == pytest.approx(expected["loss_lora"].item(), rel=1e-5)
    losses = [name for name in expected if name.startswith("loss_") and name != "loss_lora"]
    assert set(losses) | {"loss_lora"} == {name for name in actual if name.startswith("loss_")}
    for name in losses:
        a, b = (torch.autograd.grad(out[name], rgb, retain_graph=True)[0] for out in (expected, actual))
        assert float((a - b).norm() / a.norm()) < 2e-5, name
    theirs, own = ([pair[i] for pair in pairs.values()] for i in (0, 1))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(expected["loss_lora"], theirs)])
    got = torch.cat([g.flatten() for g in torch.autograd.grad(actual["loss_lora"], own)])
    assert float(expected.norm()) > 0
    assert float((got - expected).norm() / expected.norm()) < 2e-5
