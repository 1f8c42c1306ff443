"""The loops of other repositories, patched and run on a CPU by their own code: one function for each.

A driver gets a folder with the repository's files, patched, and a model's folder. It gives a `Loop`: the guidance of
the repository, and steps of its own training without the update. What CUDA would do is stood in for, see
`host_stand_ins`; sizes are small.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import random
import runpy
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from host_stand_ins import on_cpu, splatting, stand_in
from torch import Tensor, nn

GRAPHICS = ["dearpygui", "kiui", "mcubes", "nvdiffrast", "open3d", "pymeshlab", "rembg", "torchvision", "xatlas"]
PROMPT = "a red mug"
TEACHER = "carv-tiny"
SCALE = 7.5  # of uncond + s (text - uncond): 100, as the repositories have it, is too much for carv-tiny


@dataclass
class Loop:
    """A repository's loop.

    Attributes:
        module: that of its guidance class.
        guidance: the instance.
        loss: the guidance's call on images (1, 3, H, W), at SCALE.
        backward: one step on a fresh camera, up to the backward: the gradients are left in `parameters()`.
        parameters: of the scene.
        texts: has the guidance embed the prompt again.
        lr: for Adam.
        vae: the name of the guidance's autoencoder.
        draw_seed: of what the guidance draws, once it has a teacher of `take_teacher`; the render's continues if None.
        uniform: a context in which the patch draws uniformly; None where that is an option of the module's `sds_loss`.
        reload: has the guidance load TEACHER itself, given a loaded one; None where it is put in its place.
    """

    module: Any
    guidance: Any
    loss: Callable[[Tensor], Tensor]
    backward: Callable[[], None]
    parameters: Callable[[], Sequence[Tensor]]
    texts: Callable[[], None]
    lr: float
    vae: str = "vae"
    draw_seed: int | None = None
    uniform: Callable[[], contextlib.AbstractContextManager[None]] | None = None
    reload: Callable[[Any], None] | None = None


def seed_all(seed: int) -> None:
    """Every generator that a loop may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, theirs
    torch.manual_seed(seed)


@contextlib.contextmanager
def inside(folder: Path, *arguments: str) -> Iterator[None]:
    """As if started in the folder, with these arguments."""
    before, argv = Path.cwd(), sys.argv
    sys.path.insert(0, str(folder))
    sys.argv = ["main.py", *arguments]
    os.chdir(folder)
    yield
    os.chdir(before)
    sys.argv = argv


def stable_dreamfusion(folder: Path, model: Path) -> Loop:
    """Its main.py up to the training loop, then its Trainer.train_step: the NeRF without CUDA, 24 x 24 rays."""
    stand_in(folder, [*GRAPHICS, "tensorboardX"], compiled=["raymarching"])
    kept: dict[str, Any] = {}
    flags = f"--backbone vanilla --hf_key {model} --w 24 --h 24 --num_steps 24 --upsample_steps 8 --optim adam"
    flags += f" --latent_iter_ratio 0 --albedo_iter_ratio 1 --guidance_scale {SCALE} --workspace {folder / 'runs'}"
    with inside(folder, "--text", PROMPT, *flags.split()):
        utils, module = (importlib.import_module(name) for name in ("nerf.utils", "guidance.sd_utils"))
        utils.Trainer.train = lambda trainer, loader, *_: kept.update(trainer=trainer, data=loader._data)
        runpy.run_path("main.py", run_name="__main__")
    trainer, guidance = kept["trainer"], kept["trainer"].guidance["SD"]
    trainer.global_step = 1

    def loss(images: Tensor) -> Tensor:
        texts = torch.cat([trainer.embeddings["SD"][name] for name in ("uncond", "default")])
        return guidance.train_step(texts, images, guidance_scale=SCALE)

    def backward() -> None:
        trainer.train_step(kept["data"].collate([0]))[-1].backward()

    return Loop(module, guidance, loss, backward, lambda: list(trainer.model.parameters()),
                trainer.prepare_embeddings, 1e-3)  # fmt: skip


def dreamgaussian(folder: Path, model: Path, anneal: bool = False) -> Loop:
    """Its GUI.train_step without a window: 100 Gaussians at 64 x 64 by the rasterizer in PyTorch."""
    from omegaconf import OmegaConf

    stand_in(folder, [*GRAPHICS, "plyfile"])
    splatting()
    on_cpu()
    with inside(folder):
        main, module = (importlib.import_module(name) for name in ("main", "guidance.sd_utils"))
    _load_from(module, model)
    camera = main.MiniCam
    main.MiniCam = lambda pose, width, height, *more: camera(pose, 64, 64, *more)
    opt = OmegaConf.load(folder / "configs" / "text.yaml")
    more = {"prompt": PROMPT, "num_pts": 100, "density_start_iter": 10**9, "anneal_timestep": anneal}
    gui = main.GUI(OmegaConf.merge(opt, more))
    gui.prepare_train()
    gui.optimizer = SimpleNamespace(step=lambda: None, zero_grad=lambda: None)  # the update is the caller's
    guidance, gaussians = gui.guidance_sd, gui.renderer.gaussians
    stock = guidance.train_step
    guidance.train_step = lambda images, **given: stock(images, guidance_scale=SCALE, **given)

    def backward() -> None:
        gui.step = 100
        gui.train_step()

    names = ("_xyz", "_features_dc", "_opacity", "_scaling", "_rotation")
    return Loop(
        module, guidance, guidance.train_step, backward, lambda: [getattr(gaussians, n) for n in names],
        lambda: guidance.get_text_embeds([PROMPT], [""]), 5e-3,
    )  # fmt: skip


def generfacto(folder: Path, model: Path) -> Loop:
    """Its GenerfactoModel in PyTorch: 24 x 24 rays of 16, 12 and 8 samples, a camera on an orbit."""
    stand_in(folder, [*GRAPHICS, "viser", "gsplat", "wandb", "comet_ml", "splines", "pyngrok"])
    with inside(folder):
        models, module, cameras, boxes = (
            importlib.import_module(f"nerfstudio.{name}")
            for name in ("models.generfacto", "generative.stable_diffusion", "cameras.cameras", "data.scene_box")
        )
    single = types.ModuleType("torch")
    vars(single).update(vars(torch), float16=torch.float32)
    module.torch, module.SD_IDENTIFIERS = single, {"1-5": str(model)}
    few = {"num_proposal_samples_per_ray": (16, 12), "num_nerf_samples_per_ray": 8, "guidance_scale": SCALE - 1}
    config = models.GenerfactoModelConfig(
        prompt=PROMPT, diffusion_model="stablediffusion", implementation="torch", random_light_source=False, **few
    )
    box = boxes.SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    scene = models.GenerfactoModel(config, scene_box=box, num_train_data=1, grad_scaler=None, device="cpu").train()
    guidance = scene._diffusion_model

    def loss(images: Tensor) -> Tensor:
        return guidance.sds_loss(scene.text_embeddings.base_embed, images, guidance_scale=SCALE - 1)

    def backward() -> None:
        azimuth, polar = 2 * math.pi * random.random(), math.pi * (0.3 + 0.25 * random.random())
        view = cameras.Cameras(_orbit(azimuth, polar), 30.0, 30.0, 12.0, 12.0, 24, 24)
        angles = {"vertical": torch.tensor([math.degrees(polar)]), "central": torch.tensor([math.degrees(azimuth)])}
        losses = scene.get_loss_dict(scene(view.generate_rays(0).flatten()), angles)
        sum(losses.values()).backward()

    groups = scene.get_param_groups().values()
    return Loop(
        module, guidance, loss, backward, lambda: [p for g in groups for p in g],
        lambda: scene.text_embeddings.update_prompt(*[PROMPT] * 5), 3e-3, "auto_encoder",
    )  # fmt: skip


def _orbit(azimuth: float, polar: float, radius: float = 2.5) -> Tensor:
    """(1, 3, 4), a camera at these angles in radians that looks at the origin, along its own -z."""
    z = torch.tensor([math.sin(polar) * math.cos(azimuth), math.sin(polar) * math.sin(azimuth), math.cos(polar)])
    x = nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]), z), dim=0)
    return torch.stack([x, torch.linalg.cross(z, x), z, radius * z], 1)[None]


def _load_from(module: Any, model: Path) -> None:
    """Has a guidance class load this model in single precision, where its caller leaves it no choice."""
    init = module.StableDiffusion.__init__
    module.StableDiffusion.__init__ = lambda self, device: init(self, device, fp16=False, hf_key=str(model))


class EpsUNet(nn.Module):
    """A teacher's eps_hat, called as a UNet of diffusers is: carv-tiny predicts v, which not every loop knows."""

    dtype = torch.float32

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, z_t: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        """The noise as `sample`; z_t is (N, C, h, w), t (N,) or (1,)."""
        return SimpleNamespace(sample=self.teacher.eps_hat(z_t, t.long().expand(len(z_t)), encoder_hidden_states))


def take_teacher(loop: Loop, teacher: Any) -> None:
    """Puts TEACHER, loaded, in the place of the guidance's model: its autoencoder, denoiser, sizes and texts."""
    _take_sizes(loop, teacher)
    if loop.reload is not None:
        loop.reload(teacher)
        return
    setattr(loop.guidance, loop.vae, teacher.vae)
    loop.guidance.unet = EpsUNet(teacher)
    loop.module.CONST_SCALE, loop.module.IMG_DIM = teacher.vae.config.scaling_factor, teacher.image_size
    _take_texts(loop.module.StableDiffusion, teacher)
    loop.texts()


def _take_sizes(loop: Loop, teacher: Any) -> None:
    """Has the module of a guidance resize to the teacher's images and latents, and begin what it draws there."""
    functional = types.ModuleType("functional")
    sizes = {(512, 512): (teacher.image_size,) * 2, (64, 64): (teacher.latent_size,) * 2}
    vars(functional).update(vars(nn.functional))

    def interpolate(x: Tensor, size: tuple[int, int], **more: Any) -> Tensor:
        if loop.draw_seed is not None:
            torch.manual_seed(loop.draw_seed)  # between the render and all that the guidance draws
        return nn.functional.interpolate(x, sizes.get(tuple(size), size), **more)

    functional.interpolate = interpolate  # type: ignore[attr-defined]
    loop.module.F = functional


def _take_texts(kind: Any, teacher: Any) -> None:
    """Has a guidance class embed prompts by the teacher, up to their first comma: carv-tiny knows no view phrases."""

    def texts(prompts: Any) -> Tensor:
        given = [prompts] if isinstance(prompts, str) else prompts
        return teacher.text_embeddings([prompt.partition(",")[0] for prompt in given])

    if hasattr(kind, "encode_text"):
        kind.encode_text = lambda self, prompts: texts(prompts)
    elif hasattr(kind, "sds_loss"):
        kind.get_text_embeds = lambda self, prompt, negative: torch.cat([texts(negative), texts(prompt)])
    else:
        kind.get_text_embeds = lambda self, prompts: texts(prompts)


DRIVERS = {"stable-dreamfusion": stable_dreamfusion, "dreamgaussian": dreamgaussian, "nerfstudio": generfacto}
