"""``python -m carv_3d.tiny.train``: carv-tiny again from nothing, seeded, resumable at any moment.

Stages: images, autoencoder, latents, the layout that the text encoder predicts, text encoder and UNet, export. Each
leaves its result in the working folder and is skipped where it is there. Random numbers come from (seed, step): a
resumed run equals an uninterrupted one, if both are compiled or neither is.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carv_3d.config.request import OutOptions
from carv_3d.core.kinds import members
from carv_3d.core.options import SeedOptions, option
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError
from carv_3d.tiny import autoencoder, denoiser, layout
from carv_3d.tiny.dataset import Images, build, source_hash
from carv_3d.tiny.export import export
from carv_3d.tiny.quick import PRECISIONS, choose_precision, compile_in_place, loss_gradient
from carv_3d.tiny.stage import StagePlan, run_command, run_stage
from carv_3d.tiny.tokens import END, LENGTH, START, build_tokenizer
from carv_3d.tiny.vocabulary import COLORS, all_words


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OutOptions, SeedOptions, defaults={"out": Path(__file__).parent / "weights"}, kinds={"out": Path}):
    """How carv-tiny is trained; `out` is the model folder to write."""

    work: Path
    """Folder of images and checkpoints."""
    images: int = option(30_000, "How many are rendered.", least=1, most=10**7)
    image_size: int = option(64, "Their rows and columns; latents are 16 x 16 for 64 and for 128.", least=64, most=128)
    vae_steps: int = option(1_800, "Steps of the autoencoder.", least=1, most=10**9)
    vae_batch: int = option(24, "Images of each of its steps.", least=1, most=2**16)
    vae_lr: float = option(3e-3, "Its learning rate.", above=0, below=1)
    text_steps: int = option(9_000, "Steps of the text encoder.", least=1, most=10**9)
    text_batch: int = option(64, "Captions of each of its steps.", least=1, most=2**16)
    text_lr: float = option(1e-3, "Its learning rate.", above=0, below=1)
    unet_steps: int = option(8_000, "Steps of the UNet.", least=1, most=10**9)
    unet_batch: int = option(64, "Images of each of its steps.", least=1, most=2**16)
    unet_lr: float = option(8e-4, "Its learning rate.", above=0, below=1)
    unet_precision: str = option("auto", "Of its products; auto: bf16 where the processor has it.", choices=PRECISIONS)
    init: Path | None = option(
        None,
        "A model folder to start from. Its autoencoder is kept as it is, or, for images of another size, a new one "
        "learns its latents; its text encoder and UNet, where it has them, are trained further.",
    )
    threads: int = option(2, "Of torch.", least=1, most=1024)
    compile: bool = option(True, "Compile the UNet, where that works.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed >= 2**31:
            raise CarvError(f"seed is {self.seed}; it must be below 2^31.")
        if self.image_size not in autoencoder.WIDTHS:
            raise CarvError(f"image_size is {self.image_size}; it must be 64 or 128.")
        if self.init is not None and not (self.init / "vae" / "config.json").exists():
            raise CarvError(f"init {self.init} is no model folder: it has no vae/config.json.")
        self._set("unet_precision", choose_precision(self.unet_precision))


def log(message: str) -> None:
    """Print at once."""
    print(message, flush=True)


def made_with(o: TrainOptions, part: str) -> dict[str, Any]:
    """What a part's checkpoint depends on; one with other values is refused."""
    own = {k: v for k, v in vars(o).items() if k.startswith(part) and not k.endswith("steps")}
    words = hashlib.sha256(" ".join(all_words()).encode()).hexdigest()[:12]
    init = str(o.init) if o.init is not None else ""
    size = {"image_size": o.image_size} if o.image_size != 64 else {}  # older checkpoints do not name it
    return {**own, **size, "images": o.images, "seed": o.seed, "init": init, "objects": source_hash(), "words": words}


def train_autoencoder(o: TrainOptions, images: Images) -> tuple[Any, float | None]:
    """The trained autoencoder, frozen, and its scaling factor; that of ``init``, if it is for images of this size.

    A new one has no factor yet: that follows from the latents.
    """
    from diffusers import AutoencoderKL

    older = None
    if o.init is not None:
        older = AutoencoderKL.from_pretrained(o.init / "vae").float().eval().requires_grad_(False)
        if older.config.sample_size == o.image_size:  # it stays as it is: the denoiser knows its latents
            return older, float(older.config.scaling_factor)
    torch.manual_seed(o.seed)
    vae = AutoencoderKL(**autoencoder.config(o.image_size)).to(memory_format=torch.channels_last)

    def step_loss(step: int, generator: torch.Generator) -> torch.Tensor:
        x = autoencoder.batch(images, o.vae_batch, generator).contiguous(memory_format=torch.channels_last)
        return autoencoder.loss(vae, x, generator, older)

    options = StagePlan(o.vae_steps, o.vae_lr, o.seed + 3, ema=0.98)
    weights = run_stage("autoencoder", vae, step_loss, options, o.work, made_with(o, "vae"), log=log)
    vae.load_state_dict(weights)
    vae.eval().requires_grad_(False)
    for color in COLORS:  # a lost hue shows here, and hardly in a mean over all
        index = np.array([i for i, s in enumerate(images.shots) if s.color == color][:50], int)
        if not len(index):  # few images need not show every color
            continue
        x = torch.from_numpy(images.on(index, np.ones((len(index), 3)))).permute(0, 3, 1, 2).contiguous()
        log(f"autoencoder: {autoencoder.psnr(vae, x):.1f} dB on {color}")
    return vae, None


def cached_latents(o: TrainOptions, vae: Any, images: Images) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(mean, std) of the posteriors, on white and on light backgrounds, kept in the working folder."""
    weights = torch.cat([p.detach().flatten() for p in vae.parameters()]).numpy().tobytes()
    key = weights + repr((len(images.shots), o.seed, source_hash())).encode()
    path = o.work / f"latents-{hashlib.sha256(key).hexdigest()[:12]}.pt"
    if not path.exists():
        latents = [autoencoder.encode_all(vae, images, b, o.seed + 2, log) for b in ("white", "light")]
        torch.save(latents, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path, weights_only=True)


def train_text(o: TrainOptions, model: denoiser.Denoiser, data: denoiser.Latents, older: Any) -> None:
    """Train the text encoder alone, unless the model that is trained further has had that."""
    if older is not None and older.config.max_position_embeddings == LENGTH:
        return
    torch.manual_seed(o.seed)
    predictor = layout.Layout(model.text)

    def step_loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return layout.loss(predictor, *data.batch(o.text_batch, generator), older)

    options = StagePlan(o.text_steps, o.text_lr, o.seed + 9, ema=0.995)
    weights = run_stage("text", predictor, step_loss, options, o.work, made_with(o, "text"), log=log)
    predictor.load_state_dict(weights)


def load_tokenizer(o: TrainOptions) -> Any:
    """That of ``init``, whose text encoder knows its token ids, or a new one."""
    words = o.work / "tokenizer"
    if o.init is None or not (o.init / "tokenizer" / "vocab.json").exists():
        return build_tokenizer(words)
    from transformers import CLIPTokenizer

    shutil.copytree(o.init / "tokenizer", words, dirs_exist_ok=True)
    return CLIPTokenizer.from_pretrained(words, model_max_length=LENGTH)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m carv_3d.tiny.train", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "carv_3d" / "tiny")
    for name, declared in TrainOptions.declared().items():
        flag, more = f"--{name.replace('_', '-')}", {"default": declared.default, "help": declared.help}
        if name == "compile":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
        elif name != "work":
            kind = next(k for k in (Path, int, float, str) if k in members(declared.kind) or k is str)
            parser.add_argument(flag, type=kind, **more)
    run_command(parser, lambda: train(TrainOptions(**vars(parser.parse_args(argv)))))


def train(o: TrainOptions) -> None:
    """All stages; those whose results are in ``o.work`` are skipped.

    Raises:
        CarvError: a checkpoint there was made with other values.
    """
    torch.set_num_threads(o.threads)
    images = build(o.work / "train", o.images, seed=o.seed + 1, log=log, size=o.image_size)
    vae, scaling = train_autoencoder(o, images)
    posteriors = cached_latents(o, vae, images)
    if scaling is None:
        scaling = float(1 / posteriors[0][0].float().std())
    tokenizer = load_tokenizer(o)
    torch.manual_seed(o.seed)
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    model = denoiser.Denoiser(len(tokenizer), start, end, autocast=o.unet_precision == "bf16")
    older = None
    if o.init is not None and (o.init / "unet" / "config.json").exists():
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        unet = UNet2DConditionModel.from_pretrained(o.init / "unet").float()
        model.unet.load_state_dict(unet.state_dict(), strict=False)  # older weights lack add_embedding
        older = CLIPTextModel.from_pretrained(o.init / "text_encoder").float().eval().requires_grad_(False)
        layout.grow(model.text, older)
    model.unet.to(memory_format=torch.channels_last)  # a third faster on a CPU
    schedule = NoiseSchedule.scaled_linear()
    data = denoiser.Latents(posteriors, scaling, images, tokenizer)
    train_text(o, model, data, older)

    def step_loss(step: int, generator: torch.Generator) -> torch.Tensor:
        z, ids = data.batch(o.unet_batch, generator)
        z = z.contiguous(memory_format=torch.channels_last)
        return denoiser.loss(model, schedule, z, ids, generator)

    def gradient() -> list[torch.Tensor]:
        return loss_gradient(model, lambda: step_loss(0, torch.Generator().manual_seed(o.seed)))

    def begin() -> None:
        compiled = o.compile and compile_in_place(model.unet, gradient, log)
        log(f"denoiser: {o.unet_precision} products, {'compiled' if compiled else 'not compiled'}")

    def save(weights: dict[str, torch.Tensor], step: int) -> None:
        assert o.out is not None  # it has a default
        export(o.out, vae, scaling, model, weights, tokenizer, o.work / "tokenizer")

    options = StagePlan(o.unet_steps, o.unet_lr, o.seed + 5, ema=0.9985, slower={"text.": 0.2})
    weights = run_stage(
        "denoiser", model, step_loss, options, o.work, made_with(o, "unet"), on_begin=begin, on_save=save, log=log
    )
    save(weights, o.unet_steps)
    log(f"carv-tiny is in {o.out}")


if __name__ == "__main__":
    main()
