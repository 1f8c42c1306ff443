"""`carv-mvdream-multiview-diffusion-guidance`, also against what the stock guidance gave (`record_mvdream.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mvdream_models as models
import pytest
import recorded_mvdream as mvdream
import recorded_parity as recorded
import torch
from estimator_checks import check_same_mean, count_encodings
from safetensors.torch import load_file
from torch import Tensor

from carv_3d.errors import CarvError
from carv_3d.teachers.mvdream import normalized_cameras, one_by_one, side_by_side

KIND = f"carv-{mvdream.KIND}"
FACTS = recorded.facts(mvdream.FACTS)
TENSORS = load_file(mvdream.TENSORS)


@pytest.fixture
def make(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    models.install(tmp_path, monkeypatch)
    weights = models.write_weights(tmp_path / "model.pt")

    def build(**options: Any) -> Any:
        guidance = host.modules[KIND]({"ckpt_path": weights, "image_size": 16, "seed": 0, **options})
        guidance.update_step(0, recorded.STEP)
        return guidance

    return build


@pytest.mark.parametrize(("name", "given", "n"), mvdream.CASES)
def test_one_uniform_draw_gives_the_stock_gradient(
    name: str, given: str, n: int, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = mvdream.case_name(name, given, n)
    guidance, rgb = make(**recorded.ONE_DRAW, **mvdream.OPTIONS[name]), mvdream.render(given, n)
    V = guidance.cfg.n_view
    eps, posterior = (side_by_side(x, V) for x in mvdream.noise(n))
    t = torch.full((n // V, 1), FACTS["cases"][case]["t"])
    recorded.deal(guidance._carv.estimator, t, eps[:, None])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: posterior)
    out = guidance(rgb, mvdream.Prompts(), **mvdream.batch(given, n))
    recorded.check_gradients(case, out, rgb, FACTS, TENSORS)


def test_every_stock_option_has_its_stock_default(host: Any) -> None:
    config = vars(host.modules[KIND].Config())
    assert {name: config[name] for name in FACTS[mvdream.KIND]} == FACTS[mvdream.KIND]


OTHER: dict[str, Any] = {
    "ckpt_path": "other.pt", "guidance_scale": 2.0, "min_step_percent": 0.7, "max_step_percent": 0.3, "n_view": 2,
    "recon_loss": False, "recon_std_rescale": 0.0, "grad_clip": 0.01, "view_dependent_prompting": True,
    "image_size": 32,
}  # fmt: skip
"""Another value of each option that changes the gradient. grad_clip does nothing in the stock guidance."""
ELSEWHERE = {"model_name", "camera_condition_type", "half_precision_weights"}
"""Those of tests below."""


def test_every_stock_option_is_tried() -> None:
    assert {*OTHER, *ELSEWHERE} == set(FACTS[mvdream.KIND])


def gradient(guidance: Any, n: int = 4) -> Tensor:
    rgb = mvdream.render("images", n)
    return torch.autograd.grad(guidance(rgb, mvdream.Prompts(), **mvdream.batch("images", n))["loss_sds"], rgb)[0]


@pytest.mark.parametrize("name", OTHER)
def test_every_stock_option_is_acted_on(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    value = OTHER[name]
    if name == "ckpt_path":
        weights = torch.load(models.write_weights(tmp_path / "other.pt"), weights_only=True)
        schedule = {k: x for k, x in weights.items() if not k.startswith(("model.", "first_stage_model."))}
        torch.save({**{k: 0.5 * x for k, x in weights.items()}, **schedule}, tmp_path / "other.pt")
        value = str(tmp_path / "other.pt")
    before, after = (gradient(make(vae_sample=False, **options)) for options in ({}, {name: value}))
    assert bool(torch.isfinite(after).all())
    assert not torch.allclose(before, after, rtol=1e-3)


def test_the_network_stays_in_single_precision(make: Callable[..., Any]) -> None:
    assert make(half_precision_weights=True)._teacher.dtype == torch.float32  # as in the stock guidance


def test_the_views_of_an_object_share_their_draws_and_objects_do_not(make: Callable[..., Any]) -> None:
    guidance = make(num_draws=3)
    given: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
    network = guidance._teacher.network
    apply_model = network.apply_model
    network.apply_model = lambda x, t, cond: (given.append((x, t, cond)), apply_model(x, t, cond))[1]
    out = guidance(mvdream.render("images", 8), mvdream.Prompts(), **mvdream.batch("images", 8))
    assert out["nfe"] == 2 * 3 * 2  # objects, draws, with and without text
    t = torch.cat([t.chunk(2)[0] for _, t, _ in given]).view(2 * 3, 4)
    assert bool((t == t[:, :1]).all())
    assert len(t[:, 0].unique()) > 2
    cameras = torch.cat([cond["camera"].chunk(2)[0] for _, _, cond in given]).view(2, 3, 4, 16)
    expected = normalized_cameras(mvdream.batch("images", 8)["c2w"]).view(2, 1, 4, 16).expand(-1, 3, -1, -1)
    assert torch.equal(cameras, expected)
    assert all(cond["num_frames"] == 4 and len(x) == len(cond["context"]) for x, _, cond in given)


def test_cameras_are_at_distance_one_and_the_batch_keeps_its_own() -> None:
    c2w = recorded.fill("c2w", 3, 4, 4)
    kept = c2w.clone()
    cameras = normalized_cameras(c2w).view(3, 4, 4)
    assert torch.equal(c2w, kept)
    torch.testing.assert_close(cameras[:, :3, 3].norm(dim=1), torch.ones(3))
    assert torch.equal(cameras[:, :, :3], c2w[:, :, :3])
    assert torch.equal(cameras[:, 3], c2w[:, 3])


def test_views_side_by_side_come_back() -> None:
    x = torch.arange(2 * 3 * 5 * 4.0).view(6, 5, 4)
    both = side_by_side(x, 3)
    assert both.shape == (2, 15, 4)
    assert torch.equal(both[1, 5:10], x[4])
    assert torch.equal(one_by_one(both, 3), x)


def test_images_are_decoded_view_by_view(make: Callable[..., Any]) -> None:
    guidance = make(use_recon_loss=True, recon_loss=False, use_img_loss=True, num_draws=2)
    rgb = mvdream.render("images", 4)
    out = guidance(rgb, mvdream.Prompts(), **mvdream.batch("images", 4))
    assert {name for name in out if name.startswith("loss_")} == {"loss_sds", "loss_sds_img", "loss_recon"}
    z = recorded.fill("z", 8, 4, 8, 8)
    teacher = guidance._teacher
    views = teacher.network.decode_first_stage(z) * 0.5 + 0.5
    torch.testing.assert_close(one_by_one(teacher.decode(side_by_side(z, 4), clamp=False), 4), views)


def test_given_embeddings_take_the_prompts_place(make: Callable[..., Any]) -> None:
    batch, rgb = mvdream.batch("images", 4), mvdream.render("images", 4)
    text = mvdream.Prompts().get_text_embeddings(
        *[batch[k] for k in ("elevation", "azimuth", "camera_distances")], True
    )
    a = make(vae_sample=False)(rgb, None, **batch, text_embeddings=text)["loss_sds"]
    b = make(vae_sample=False, view_dependent_prompting=True)(rgb, mvdream.Prompts(), **batch)["loss_sds"]
    assert torch.equal(a, b)


def test_a_timestep_is_for_one_call(make: Callable[..., Any]) -> None:
    guidance, rgb = make(num_draws=2), mvdream.render("images", 4)
    for timestep, expected in ((7, (7, 7)), (None, (20, 980)), (999, (999, 999))):
        out = guidance(rgb, mvdream.Prompts(), **mvdream.batch("images", 4), timestep=timestep)
        assert (out["min_step"], out["max_step"]) == expected


def test_all_that_is_logged_is_a_scalar(make: Callable[..., Any]) -> None:
    out = make()(mvdream.render("images", 4), mvdream.Prompts(), **mvdream.batch("images", 4))
    for name, value in out.items():
        assert isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1), name
    assert out["renders"] == 4


@pytest.mark.parametrize("recon_loss", [True, False])
def test_eight_draws_have_the_mean_of_one(recon_loss: bool, make: Callable[..., Any]) -> None:
    def gradients(steps: int, **options: Any) -> Tensor:
        """(n, D), the gradients of objects that are the same, each with draws of its own."""
        guidance, n, kept = make(recon_loss=recon_loss, max_batch=512, **options), 32, []
        z = (recorded.gaussian("latents", 4, 4, 8, 8) / 2).repeat(n, 1, 1, 1).requires_grad_()
        batch = {name: x.repeat(n, *[1] * (x.dim() - 1)) for name, x in mvdream.batch("images", 4).items()}
        for _ in range(steps):
            loss = guidance(z, mvdream.Prompts(), **batch, input_is_latent=True)["loss_sds"]
            kept.append(torch.autograd.grad(4 * n * loss, z)[0].reshape(n, -1))
        return torch.cat(kept)

    check_same_mean(gradients(16, **recorded.ONE_DRAW), gradients(4, num_draws=8, stratify="render", seed=5))


def test_eight_draws_cost_one_encoding_and_one_backward(make: Callable[..., Any]) -> None:
    guidance = make(num_draws=8)
    forward, backward = count_encodings(guidance)
    out = guidance(mvdream.render("images", 8), mvdream.Prompts(), **mvdream.batch("images", 8))
    out["loss_sds"].backward()
    assert (forward, backward) == ([2], [2])
    assert (out["K"], out["nfe"]) == (8, 2 * 2 * 8)


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"model_name": "sd-v9"}, "model_name is 'sd-v9'; it must be one of sd-v2.1-base-4view"),
        ({"ckpt_path": "no/such.pt"}, "no weights at no/such.pt: there is no such file"),
        ({"camera_condition_type": "rays"}, "camera_condition_type is 'rays'"),
        ({"n_view": 0}, "n_view is 0"),
        ({"objective": "csd"}, "recon_loss is an objective of its own: set it to false for csd"),
        ({"use_sjc": True}, "recon_loss is an objective of its own: set it to false for sjc"),
        ({"weighting_strategy": "uniform"}, "has no w(t), so weighting_strategy uniform would be ignored"),
        ({"recon_std_rescale": 2.0}, "recon_std_rescale is 2.0"),
        ({"recon_loss": False, "objective": "nfsd"}, "needs a negative prompt"),
        ({"vae": "some/vae"}, "guidance has no option 'vae'"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(cfg: dict[str, Any], said: str, make: Callable[..., Any]) -> None:
    with pytest.raises(CarvError, match=re.escape(said)):
        make(**cfg)


def test_renders_that_are_no_whole_objects_are_one_sentence(make: Callable[..., Any]) -> None:
    with pytest.raises(
        CarvError, match=r"a step has 6 renders, no multiple of n_view, which is 4: set data\.n_view to 4"
    ):
        make()(mvdream.render("images", 6), mvdream.Prompts(), **mvdream.batch("images", 6))


def test_a_package_that_is_not_there_is_one_sentence(host: Any) -> None:
    with pytest.raises(CarvError, match=r"needs the package mvdream \(.*\): pip install git\+https"):
        host.modules[KIND]({})


def test_weights_that_the_hub_does_not_give_are_one_sentence(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(repo_id: str, filename: str) -> str:
        raise OSError(f"no {repo_id}/{filename}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    said = r"model.pt of MVDream/MVDream cannot be had from the hub \(no MVDream/MVDream/model.pt\): name a local file"
    with pytest.raises(CarvError, match=said):
        make(ckpt_path=None)
