"""What every latent diffusion teacher shares: finding and loading a model, images and latents, remembered prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from carv_3d.core.arguments import FAILURES, checked, refuse_arguments, refuse_text
from carv_3d.core.schedule import NoiseSchedule
from carv_3d.errors import CarvError, first_line, packages, shown
from carv_3d.teachers.denoiser import Denoiser
from carv_3d.teachers.families import Family
from carv_3d.teachers.inputs import check_as_made, check_images, check_latents, placement
from carv_3d.teachers.loading import can_offload, choose_device, choose_dtype, load_parts, merge_tokens, offload_to_cpu
from carv_3d.teachers.lora_files import add_loras
from carv_3d.teachers.model_config import latent_scale, vae_factor
from carv_3d.teachers.model_folder import MEND, read_json
from carv_3d.teachers.other_vae import find_vae
from carv_3d.teachers.pixels import Point
from carv_3d.teachers.quantized import check_quantized
from carv_3d.teachers.single_file import find_folder, single_file
from carv_3d.teachers.tokens import shortened

USUAL = (torch.float32, torch.float16, torch.bfloat16)  # of images and latents

SomeTeacher = TypeVar("SomeTeacher", bound="LatentDiffusionTeacher")


class LatentDiffusionTeacher(Denoiser):
    """A `carv_3d.teachers.base.Teacher` over a network and a VAE, but for the text, which a subclass encodes.

    It is no torch module on purpose: nothing of it lands in a host's checkpoint, optimizer or
    `train()` call. Parameters are frozen; gradients pass through `encode` and `decode` to their inputs.
    """

    family: ClassVar[Family]
    default_model: ClassVar[str]

    def __init__(
        self,
        network: Any,
        vae: Any,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        name: str = "",
        text_width: int | None = None,
    ) -> None:
        """Parts that are already on one device.

        Args:
            network: diffusers' UNet or transformer.
            vae: diffusers' autoencoder, or `pixels.Pixels` for none.
            schedule: of the model's training.
            prediction_type: one that the schedule knows.
            name: for messages.
            text_width: D of the text embeddings, if the encoders of a UNet are at hand.

        Raises:
            CarvError: the sizes of the parts do not fit, or the prediction type is unknown.
        """
        super().__init__(network, schedule, prediction_type, name)
        self.vae: Any = vae.eval().requires_grad_(False)
        self.vae_dtype: torch.dtype = next(vae.parameters(), torch.empty(0)).dtype
        self._vae_placement = placement(vae)
        self.vae_factor = vae_factor(vae.config)
        self.latent_channels = int(vae.config.latent_channels)
        self.latent_size = self._find_latent_size()
        self.image_size = self.latent_size * self.vae_factor
        if text_width is not None and network.config.cross_attention_dim != text_width:
            raise CarvError(
                f"the parts of {name or 'this model'} do not fit: its text encoder gives width {text_width}, "
                f"its UNet takes {network.config.cross_attention_dim}."
            )
        self._scaling, self._shift = latent_scale(vae.config, self.device)
        self._embeddings: dict[str, Tensor] = {}

    def _find_latent_size(self) -> int:
        """The side of the latents that it was trained at: the network's own, else the VAE's."""
        size = getattr(self.network.config, "sample_size", None)
        if size is None:
            size = int(self.vae.config.sample_size) // self.vae_factor
        if isinstance(size, (list, tuple)):
            if len(set(size)) != 1:
                name = self.name or "this model"
                raise CarvError(f"the {self.family.network} of {name} is not square (sample_size {size}).")
            size = size[0]
        return int(size)

    @classmethod
    @packages("teachers")
    @checked
    @torch.inference_mode(False)  # else nothing could be differentiated through its weights, ever
    def load(
        cls: type[SomeTeacher],
        name_or_path: str | None = None,
        device: str | torch.device | None = None,
        half_precision: bool | None = None,
        channels_last: bool = False,
        local_files_only: bool = False,
        cache_dir: str | None = None,
        with_text: bool = True,
        attention_slicing: bool = False,
        cpu_offload: bool = False,
        token_merging: dict[str, Any] | None = None,
        folder: Path | None = None,
        model_config: str | None = None,
        vae: str | None = None,
        loras: Sequence[str] | None = None,
    ) -> SomeTeacher:
        """Finds, checks and loads a model.

        Args:
            name_or_path: "carv-tiny", a local diffusers folder, a hub id, or for Stable Diffusion 1, 2 and XL a
                single .safetensors file; the family's `default_model` if None.
            device: CUDA if there is one, unless named.
            half_precision: float16, on CUDA only; None takes it there. On the CPU it is float32, with a note in the
                log (float16 and bfloat16 are slower there).
            channels_last: the memory format of network and VAE; no gain was measured on the CPU.
            local_files_only: never ask the hub.
            cache_dir: where the hub's files are kept; the hub's own place if None.
            with_text: False leaves the text encoder out, for hosts that bring their own embeddings.
            attention_slicing: attention in slices: less memory, slower; of a UNet alone.
            cpu_offload: parameters stay in the CPU's memory and visit the GPU layer by layer: least memory, much
                slower. CUDA only, with a note in the log elsewhere. Needs accelerate.
            token_merging: arguments of tomesd.apply_patch, {} for its defaults; None for none. Needs tomesd; it
                changes the prediction, and is for a UNet alone.
            folder: of the model, where `find_folder` has found it already.
            model_config: of a single file, a diffusers folder with its configurations and tokenizers; without it they
                are sought in the hub's cache.
            vae: the folder of another VAE, or its .safetensors file, to which the model's own scale of latents applies.
            loras: adapters that are added to the weights, "FILE.safetensors:SCALE" each; ":SCALE" may be left out.

        Raises:
            CarvError: before anything is loaded, if the model is not to be had, not whole or of another family.
        """
        refuse_text("loras", loras)
        name_or_path = name_or_path or cls.default_model
        folder = folder or find_folder(name_or_path, local_files_only, cache_dir, cls.family, model_config)
        at = find_vae(vae, folder, cls.family)
        device = choose_device(device)
        quantized = check_quantized(folder, cls.family, device, altered=bool(loras) or cpu_offload)
        if cls.family.network != "unet" and (attention_slicing or token_merging is not None):
            raise CarvError(f"attention_slicing and token_merging are for a UNet, and {cls.family.name} has none.")
        dtype = choose_dtype(device, half_precision, cls.family.half)
        said = folder / "vae" if at is not None and at.is_file() else at
        vae_dtype = dtype if said is None else cls._choose_vae_dtype(read_json(said / "config.json"), dtype)
        weights = single_file(name_or_path)
        parts = load_parts(
            folder, dtype, with_text, cls.family, vae_dtype=vae_dtype, vae=at if vae else None, weights=weights
        )
        if loras:
            add_loras(parts, loras, str(read_json(folder / "model_index.json").get("_class_name")))
        offload = cpu_offload and can_offload(device)
        modules = [part for part in cls.family.classes if parts[part] is not None]
        for part in modules:
            if not offload and part not in quantized:  # these are on their GPU already
                parts[part] = parts[part].to(device)
            if channels_last and part in (cls.family.network, "vae"):
                parts[part] = parts[part].to(memory_format=torch.channels_last)
        schedule = parts.pop("scheduler")
        teacher = cls._from_parts(
            folder, parts, schedule=schedule, prediction_type=schedule.prediction_type, name=str(name_or_path)
        )
        if attention_slicing:
            teacher.unet.set_attention_slice(1)
        if token_merging is not None:
            merge_tokens(teacher.unet, token_merging)
        if offload:
            offload_to_cpu([parts[part] for part in modules], device)
            teacher.device, teacher.schedule = device, teacher.schedule.to(device)
        teacher._check_vae()
        return teacher

    @torch.no_grad()
    def _check_vae(self) -> None:
        """A small image to latents and back: a config.json that fits the weights' shapes may still be of no network."""
        side = 4 * self.vae_factor
        try:
            images = self.decode(self.encode(torch.zeros(1, 3, side, side, device=self.device), sample=False))
            if images.shape != (1, 3, side, side):
                raise ValueError(f"it makes images {tuple(images.shape)} of (1, 3, {side}, {side})")
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise CarvError(
                f"the VAE of {self.name or 'this model'} cannot be run ({first_line(error)}), so its config.json is "
                f"not that of its weights; {MEND}"
            ) from error

    @classmethod
    def _choose_vae_dtype(cls, config: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        return dtype

    @classmethod
    def _from_parts(cls: type[SomeTeacher], folder: Path, parts: dict[str, Any], **known: Any) -> SomeTeacher:
        return cls(**parts, **known)

    def encode(self, images: Tensor, generator: torch.Generator | None = None, sample: bool = True) -> Tensor:
        """Images as scaled latents.

        Args:
            images: (B, 3, H, W) in [0, 1], differentiable; H and W are multiples of the VAE's factor (`image_size` is
                the size that the model was trained at).
            generator: of the posterior's noise; torch's global one if None.
            sample: one posterior sample per image, instead of the posterior's mode.

        Returns:
            (B, C, H / factor, W / factor), in images' dtype.

        Raises:
            CarvError: another shape.
        """
        try:
            posterior = self._posterior(images)
            z = posterior.sample(generator) if sample else posterior.mode()
            return ((z - self._shift) * self._scaling).to(images.dtype)
        except FAILURES as error:
            refuse_arguments(
                LatentDiffusionTeacher.encode, {"images": images, "generator": generator, "sample": sample}, error
            )
            raise

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution that `encode` samples: mean and standard deviation of scaled latents (B, C, h, w).

        Both are differentiable in `images`.

        Raises:
            CarvError: as `encode`.
        """
        posterior = self._posterior(images)
        mean = ((posterior.mean - self._shift) * self._scaling).to(images.dtype)
        return mean, (posterior.std * self._scaling).to(images.dtype)

    def _posterior(self, images: Tensor) -> Any:
        if not _usual(images, 3) or any(side % self.vae_factor for side in images.shape[2:]):
            check_images(images, self.vae_factor)
        try:
            with torch.autocast(self.device.type, enabled=False):
                encoded = self.vae.encode(images.to(self.vae_dtype) * 2 - 1)
        except FAILURES:
            self._check_vae_as_made()
            raise
        return encoded.latent_dist if hasattr(encoded, "latent_dist") else Point(encoded.latent)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Scaled latents as images.

        Args:
            latents: (B, C, h, w), differentiable.
            clamp: cut to [0, 1], where the gradient is zero outside.

        Returns:
            (B, 3, H, W), in latents' dtype.
        """
        try:
            if not _usual(latents, self.latent_channels):
                check_latents(latents, self.latent_channels)
            with torch.autocast(self.device.type, enabled=False):
                z = latents.to(self.vae_dtype) / self._scaling + self._shift
                images = self.vae.decode(z.to(self.vae_dtype)).sample
            images = (images * 0.5 + 0.5).to(latents.dtype)
            return images.clamp(0, 1) if clamp else images
        except FAILURES as error:
            refuse_arguments(LatentDiffusionTeacher.decode, {"latents": latents, "clamp": clamp}, error)
            self._check_vae_as_made()
            raise

    def _check_vae_as_made(self) -> None:
        check_as_made(self.vae, self._vae_placement, f"the VAE of {self.name or 'this teacher'}")

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, L, D) in the model's dtype, each prompt encoded once and then remembered.

        What does not fit the text encoder's context is cut off, with a note in the log.

        Raises:
            CarvError: the teacher has no text encoder, or there are no prompts.
        """
        try:
            if isinstance(prompts, str):
                prompts = [prompts]
            if not prompts:
                raise CarvError("prompts is empty; give one at least, such as the empty prompt [''].")
            new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
            if any("\ud800" <= letter <= "\udfff" for letter in "".join(new)):
                raise CarvError(f"prompts is {shown(new)}; half of a character is in it, which is no text in UTF-8.")
            if new:
                self._embeddings.update(zip(new, self._encode_text(new)))
            return torch.stack(list(map(self._embeddings.__getitem__, prompts)))
        except FAILURES as error:
            refuse_arguments(LatentDiffusionTeacher.text_embeddings, {"prompts": prompts}, error)
            raise

    def shortened(self, prompt: str, endings: Sequence[str]) -> str:
        """The prompt, cut so that every ending fits behind it in the text encoders' context, see `tokens.shortened`.

        Args:
            prompt: the text.
            endings: what will stand behind the prompt.

        Returns:
            The prompt, or its first words.
        """
        for tokenizer, length in self._tokenizers:
            prompt = shortened(tokenizer, prompt, endings, length)
        return prompt

    @property
    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Each tokenizer, with the tokens that its encoder reads; none where it was loaded without."""
        return []

    def forget_texts(self) -> None:
        """Lets go of the prompts that `text_embeddings` remembers, for work on more captions than memory holds."""
        self._embeddings.clear()

    @property
    def text_parts(self) -> list[tuple[Any, dict[str, Any]]]:
        """Each text encoder, with all else that changes an embedding; none where it was loaded without."""
        raise NotImplementedError

    def _encode_text(self, prompts: list[str]) -> Tensor:
        raise NotImplementedError


def _usual(x: Any, channels: int) -> bool:
    """Whether nothing is left to check of the kind and axes: that of each step, without a call to another file."""
    usual = type(x) is Tensor and x.dtype in USUAL and x.layout == torch.strided and not (x.is_meta or x.is_nested)
    return usual and x.dim() == 4 and x.shape[1] == channels and 0 not in x.shape
