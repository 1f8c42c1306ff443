"""Every option of the training reaches the part that it is for."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from carv_3d.errors import CarvError
from carv_3d.tiny import train
from carv_3d.tiny.render import Shot
from carv_3d.tiny.tokens import END, LENGTH, START


class Small(torch.nn.Module):
    """In place of the denoiser."""

    def __init__(self, vocabulary: int, start: int, end: int, autocast: bool) -> None:
        super().__init__()
        self.sizes, self.autocast = (vocabulary, start, end), autocast
        self.text, self.unet = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)


class Recorder:
    """In place of all work: what each part is asked for."""

    shots = (Shot("mug", "red"),) * 4

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self.batches: list[int] = []
        self.said: list[str] = []
        self.exported: tuple[Any, ...] = ()
        nothing = torch.zeros(())
        latents = torch.zeros(1, 4, 16, 16), torch.zeros(1, LENGTH, dtype=torch.long)
        for owner, name, value in (
            (torch, "set_num_threads", lambda n: self.asked.update(threads={"n": n})),
            (train, "log", self.said.append),
            (train, "run_stage", self.stage),
            (train, "build", self.build),
            (train, "build_tokenizer", lambda folder: self),
            (train, "compile_in_place", lambda *given: True),
            (train, "export", self.export),
            (train.autoencoder, "batch", lambda images, n, g: self.batches.append(n) or torch.zeros(1, 3, 64, 64)),
            (train.autoencoder, "loss", lambda *given: nothing),
            (train.autoencoder, "encode_all", self.encode),
            (train.autoencoder, "psnr", lambda *given: 30.0),
            (train.layout, "loss", lambda *given: nothing),
            (train.denoiser, "Denoiser", Small),
            (train.denoiser.Latents, "batch", lambda data, n, g: self.batches.append(n) or latents),
            (train.denoiser, "loss", lambda *given: nothing),
        ):
            monkeypatch.setattr(owner, name, value)

    def stage(
        self, name: str, module: Any, step_loss: Any, options: Any, folder: Path, made_with: Any, **settings: Any
    ) -> Any:
        self.asked[name] = {**asdict(options), "folder": folder, "made_with": made_with, **settings}
        step_loss(0, torch.Generator().manual_seed(0))
        settings.get("on_begin", lambda: None)()
        return module.state_dict()

    def build(self, folder: Path, count: int, seed: int, log: Any, size: int) -> Any:
        self.asked["images"] = {"folder": folder, "count": count, "seed": seed, "size": size}
        return self

    def on(self, index: Any, background: Any) -> Any:
        return torch.zeros(len(index), 64, 64, 3).numpy()

    def encode(self, vae: Any, images: Any, background: str, seed: int, log: Any) -> Any:
        self.asked[f"latents {background}"] = {"seed": seed}
        mean = torch.full((4, 4, 16, 16), 0.5)
        mean[0] = -0.5  # a variance of 3/16
        return mean.half(), mean.half()

    def export(self, *given: Any) -> None:
        self.exported = given

    def __len__(self) -> int:  # as a tokenizer
        return 99

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        assert tokens == [START, END]
        return [97, 98]


def test_each_stage_has_its_own_steps_rates_batches_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder(monkeypatch)
    options = train.TrainOptions(
        work=tmp_path, out=tmp_path / "out", images=4, seed=20, threads=1,
        vae_steps=2, vae_batch=3, vae_lr=0.01, text_steps=4, text_batch=5, text_lr=0.02,
        unet_steps=6, unet_batch=7, unet_lr=0.03, unet_precision="bf16",
    )  # fmt: skip
    train.train(options)
    asked = record.asked
    assert asked["threads"] == {"n": 1}
    assert asked["images"] == {"folder": tmp_path / "train", "count": 4, "seed": 21, "size": 64}
    assert asked["latents white"] == asked["latents light"] == {"seed": 22}
    plan = {"autoencoder": (2, 0.01, 23, 0.98), "text": (4, 0.02, 29, 0.995), "denoiser": (6, 0.03, 25, 0.9985)}
    for name, expected in plan.items():
        assert tuple(asked[name][k] for k in ("steps", "lr", "seed", "ema")) == expected, name
        assert asked[name]["folder"] == tmp_path
    assert record.batches == [3, 5, 7]
    assert asked["denoiser"]["slower"] == {"text.": 0.2}
    assert asked["autoencoder"]["made_with"]["vae_batch"] == 3
    assert asked["text"]["made_with"]["text_lr"] == 0.02
    assert asked["denoiser"]["made_with"]["unet_precision"] == "bf16"
    out, _, scaling, model, _, tokenizer, words = record.exported
    assert (out, tokenizer, words) == (options.out, record, tmp_path / "tokenizer")
    assert (model.sizes, model.autocast) == ((99, 97, 98), True)
    assert scaling == pytest.approx((3 / 16) ** -0.5, rel=1e-2)
    assert record.said == [
        "autoencoder: 30.0 dB on red", "denoiser: bf16 products, compiled", f"carv-tiny is in {options.out}",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [64, 128])
def test_a_new_autoencoder_is_trained_where_the_older_one_is_for_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from diffusers import AutoencoderKL

    record, given = Recorder(monkeypatch), list[Any]()
    monkeypatch.setattr(train.autoencoder, "loss", lambda vae, x, g, older: given.append((vae, older)) or vae)
    older = AutoencoderKL(**train.autoencoder.config(64), scaling_factor=0.25)
    older.save_pretrained(tmp_path / "init" / "vae")
    options = train.TrainOptions(work=tmp_path, out=tmp_path, images=4, image_size=size, init=tmp_path / "init")
    vae, scaling = train.train_autoencoder(options, record)  # type: ignore[arg-type]
    assert vae.config.sample_size == size
    assert scaling == (0.25 if size == 64 else None)
    assert [(new.config.sample_size, old.config.sample_size) for new, old in given] == [(128, 64)] * (size == 128)
    assert record.asked.get("autoencoder", {}).get("made_with", {}).get("image_size") == (128 if size == 128 else None)


COUNTS = ("images", "vae_steps", "vae_batch", "text_steps", "text_batch", "unet_steps", "unet_batch", "threads")


def test_options_of_the_command_are_those_of_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[train.TrainOptions] = []
    monkeypatch.setattr(train, "train", given.append)
    train.main(["--work", "w", "--out", "o"])
    assert given[-1] == train.TrainOptions(work=Path("w"), out=Path("o"))
    values = {
        "image_size": 128,
        "images": 3, "vae_steps": 4, "vae_batch": 5, "vae_lr": 0.1, "text_steps": 6, "text_batch": 7, "text_lr": 0.2,
        "unet_steps": 8, "unet_batch": 9, "unet_lr": 0.3, "unet_precision": "fp32", "seed": 10, "threads": 11,
    }  # fmt: skip
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    flags = [word for k, v in values.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    train.main(["--work", "w", "--out", "o", "--init", str(tmp_path), "--no-compile", *flags])
    assert vars(given[-1]) == {**values, "work": Path("w"), "out": Path("o"), "init": tmp_path, "compile": False}


@pytest.mark.parametrize(
    ("option", "value"),
    [(name, 0) for name in COUNTS]
    + [(name, value) for name in ("vae_lr", "text_lr", "unet_lr") for value in (0.0, 1.0)]
    + [("image_size", 96), ("seed", -1), ("seed", 2**31), ("init", Path("nowhere")), ("unet_precision", "fp8")],
)
def test_options_out_of_range_are_named(option: str, value: Any) -> None:
    with pytest.raises(CarvError, match=f"^{option} "):
        train.TrainOptions(work=Path("w"), out=Path("o"), **{option: value})


def test_what_a_checkpoint_depends_on() -> None:
    first = train.made_with(train.TrainOptions(work=Path("w"), out=Path("o")), "unet")
    assert first == {
        "unet_batch": 64, "unet_lr": 8e-4, "unet_precision": first["unet_precision"], "images": 30_000, "seed": 0,
        "init": "", "objects": "47c5220b6e14", "words": "6bc4e2ee9aab",
    }  # fmt: skip
    longer = train.made_with(train.TrainOptions(work=Path("w"), out=Path("o"), unet_steps=9, vae_lr=0.5), "unet")
    assert longer == first  # a run may be longer, and other parts' options are not its own
    larger = train.made_with(train.TrainOptions(work=Path("w"), out=Path("o"), image_size=128), "unet")
    assert larger == {**first, "image_size": 128}
