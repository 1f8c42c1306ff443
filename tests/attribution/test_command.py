"""`carv attribute` from end to end on a model small enough, its bad input, and its page."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import noise_images
import numpy as np
import pytest
import torch
from commands import refusal
from PIL import Image

from carv_3d.attribution import FeatureMaker, FeatureOptions, GradientModel, GroupedDrawOptions, cosine, kernel
from carv_3d.attribution.asking import Asked
from carv_3d.attribution.command import AttributeOptions, attribute
from carv_3d.attribution.encoded import EncodedImages, encode_images
from carv_3d.attribution.folder_images import FolderImages
from carv_3d.attribution.images import TinyImages
from carv_3d.attribution.queries import query_kind
from carv_3d.attribution.scoring import Scorer
from carv_3d.attribution.shipped import PATH, ShippedRows
from carv_3d.attribution.store import RowStore
from carv_3d.attribution.training_rows import check_store, kept_kernel, load_model
from carv_3d.cli import main as cli
from carv_3d.errors import CarvError
from carv_3d.io.files import locked

SIZE = 16  # of the images of `sd_folder`


def save(path: Path, seed: int, size: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(6):
        save(tmp_path / "data" / f"{i}.png", i)
    (tmp_path / "data" / "0.txt").write_text("a red mug\n")
    return tmp_path / "data"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CARV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


def arguments(query: Path | str, data: Path, model: Path, *more: str) -> list[str]:
    return noise_images.words(query, data, model, *more)


def test_rows_that_come_with_the_package_are_scored_and_begun_before_the_model(
    sd_folder, place, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    rows = torch.randn(30, 2, 16, generator=torch.Generator().manual_seed(0))

    class Ahead:
        def __init__(self, options: AttributeOptions) -> None:
            order.append("begun")

        def get(self, key: dict) -> tuple[ShippedRows, Scorer]:
            order.append(f"dim {key['options']['dim']}")
            return ShippedRows(rows, np.arange(30), 1.0, key), Scorer("cosine", rows)

    def load(*a: object) -> object:
        order.append("loaded")
        return load_model(*a)

    monkeypatch.setattr("carv_3d.attribution.command.ShippedAhead", Ahead)
    monkeypatch.setattr("carv_3d.attribution.command.load_model", load)
    monkeypatch.setattr("carv_3d.attribution.page.render_page", lambda *a: "")  # the images take seconds
    save(place / "query.png", 3)
    options = {"query_draws": 16, "dim": 16, "parameters": "all", "out": Path("out")}
    assert attribute(AttributeOptions(query="query.png", model=str(sd_folder), **options)) == 0
    assert order == ["begun", "loaded", "dim 16"]
    assert json.loads(Path("out/settings.json").read_text())["store"] == str(PATH)
    with open("out/scores.csv", encoding="utf-8") as file:
        assert sorted(row["image"] for row in csv.DictReader(file)) == sorted(f"tiny-{i}" for i in range(30))


def test_the_table_holds_the_cosines_of_gradients(data, sd_folder, sd_teacher, place, capsys) -> None:
    assert cli.main(arguments(data / "3.png", data, sd_folder, "--out", "a")) == 0
    with open("a/scores.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    values = [float(r["score"]) for r in rows]
    assert values == sorted(values, reverse=True)
    assert {r["caption"] for r in rows if r["image"] == "0.png"} == {"a red mug"}

    def feature(index: int, draws: GroupedDrawOptions, role: str, key: str, caption: str) -> torch.Tensor:
        options = FeatureOptions(draws=draws, dim=64, parameters="text", balance=True)
        maker = FeatureMaker(GradientModel.from_teacher(sd_teacher), options, role)
        z = encode_images([FolderImages(data, SIZE).image(index)], sd_teacher)[0]
        return maker.feature(key, z, sd_teacher.text_embeddings([caption])[0])

    few, many = GroupedDrawOptions(num_draws=4), GroupedDrawOptions(num_draws=16, groups=8)
    items = [feature(i, few, "train", f"{i}.png", "a red mug" if i == 0 else "") for i in (0, 4)]
    expected = cosine(feature(3, many, "query", "0", "")[None], torch.stack(items))
    by_image = {r["image"]: r for r in rows}
    for name, value, error in zip(("0.png", "4.png"), expected.values[0], expected.errors[0]):
        assert float(by_image[name]["score"]) == pytest.approx(float(value), rel=1e-3)
        assert float(by_image[name]["standard_error"]) == pytest.approx(float(error), rel=1e-2)
    page = Path("a/report.html").read_text()
    assert "2 an image, 8 a query image" in page
    assert "±" not in page
    assert page.count("data:image/png;base64,") in (1, 7)  # the query, and every training image if they are ranked
    assert "Done: open" in capsys.readouterr().out
    # again: nothing is computed anew, and nothing is written over
    assert cli.main(arguments(data / "3.png", data, sd_folder, "--out", "a")) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert cli.main(arguments(data / "3.png", data, sd_folder, "--out", "b")) == 0
    assert Path("b/scores.csv").read_text() == Path("a/scores.csv").read_text()
    assert "images a second" not in Path("b/report.html").read_text()
    # in two shares, of which the first alone makes no page
    shares = [*arguments(data / "3.png", data, sd_folder, "--out", "c"), "--store", "s", "--shard"]
    assert cli.main([*shares, "1/2"]) == 0
    assert "3 training images are left" in capsys.readouterr().out
    assert not Path("c").exists()
    assert cli.main([*shares, "0/2"]) == 0
    assert Path("c/scores.csv").read_text() == Path("a/scores.csv").read_text()


def test_the_method_is_d_trak_relatif_unless_another_is_named(data, sd_folder, place) -> None:
    words = [w for w in arguments(data / "0.png", data, sd_folder) if w not in ("--method", "cosine")]
    assert cli.main([*words, "--out", "unnamed"]) == 0
    assert cli.main([*words, "--out", "named", "--method", "d-trak-relatif"]) == 0
    assert Path("unnamed/scores.csv").read_text() == Path("named/scores.csv").read_text()
    assert cli.main([*words, "--out", "other", "--method", "cosine"]) == 0
    assert Path("unnamed/scores.csv").read_text() != Path("other/scores.csv").read_text()
    page = Path("unnamed/report.html").read_text()
    assert "D-TRAK" in page
    assert json.loads(Path("unnamed/settings.json").read_text())["ridge"] == 10
    assert "ridge" in page


def test_a_prompt_is_asked_about_by_images_of_it(data, sd_folder, place) -> None:
    assert cli.main(arguments("a red mug", data, sd_folder, "--views", "2", "--method", "trak")) == 0
    page = Path("outputs/attribution-a-red-mug/report.html").read_text()
    assert page.count("data:image/png;base64,") in (2, 8)
    assert "TRAK" in page


def test_a_query_of_several_images_has_their_mean(data, sd_folder, place, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(Asked, "round", lambda self: asked.append(torch.randn(2, 8, 64)) or asked[0])
    assert cli.main(arguments("a red mug", data, sd_folder, "--views", "2", "--out", "a")) == 0
    folder = next(p for p in (place.parent / "cache").rglob("rows.npy") if p.parent.name.startswith("loss"))
    expected = cosine(asked[0].mean(0, keepdim=True), np.load(folder)).values[0]
    with open("a/scores.csv", newline="") as handle:
        by_image = {r["image"]: float(r["score"]) for r in csv.DictReader(handle)}
    assert [by_image[f"{i}.png"] for i in range(6)] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.usefixtures("heeded_signals")
def test_a_resumed_run_ends_with_the_same_scores(data, sd_folder, place, monkeypatch, capsys) -> None:
    assert cli.main(arguments(data / "1.png", data, sd_folder, "--out", "whole")) == 0
    monkeypatch.setenv("CARV_CACHE", str(place.parent / "cache 2"))
    features, made = FeatureMaker.features, []

    def interrupt(self, keys, latents, conditions):
        if len(made) == 2:
            os.kill(os.getpid(), 2)  # Ctrl-C, during the third image
        made.extend(keys)
        return features(self, keys, latents, conditions)

    monkeypatch.setattr(FeatureMaker, "features", interrupt)
    assert cli.main(arguments(data / "1.png", data, sd_folder, "--out", "cut")) == 130
    assert "the same command resumes there" in capsys.readouterr().out
    assert made == ["0.png", "1.png", "2.png"]
    assert not Path("cut").exists()
    assert cli.main(arguments(data / "1.png", data, sd_folder, "--out", "cut")) == 0
    assert made[3:] == ["3.png", "4.png", "5.png", "0"]
    assert Path("cut/scores.csv").read_text() == Path("whole/scores.csv").read_text()


def test_bad_input_is_one_sentence_and_nothing_is_written(data, sd_folder, place, capsys, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "large.png", 0, 40)
    (tmp_path / "text.png").write_text("no image")
    save(tmp_path / "latin" / "0.png", 0)
    (tmp_path / "latin" / "metadata.jsonl").write_bytes(b'{"file_name": "0.png", "text": "caf\xe9"}')
    (tmp_path / "other-run").mkdir()
    (tmp_path / "other-run" / "config.yaml").write_text("model: carv-tiny")
    (tmp_path / "hub-run").mkdir()
    model = "{guidance: {pretrained_model_name_or_path: owner/model}}"
    model = f"data: {{width: 64}}\nsystem: {model}\ntrainer: {{max_steps: 3}}\ncheckpoint: {{every_n_train_steps: 9}}"
    (tmp_path / "hub-run" / "config.yaml").write_text(model)
    cases = [
        (["attribute"], "the query is missing"),
        (["attribute", "a", "mug"], "2 queries were given"),
        (["attribute", "a red mug", "num_drws=4"], "did you mean 'num_draws'?"),
        (["attribute", "  "], "the query is empty"),
        (["attribute", "nothing.png"], "there is no nothing.png"),
        (["attribute", str(tmp_path / "empty")], "is no run of carv generate"),
        (["attribute", "a red zeppelin"], "zeppelin"),
        (["attribute", "a red mug", "num_draws=6"], "num_draws is 6 in 2 groups, and antithetic draws come in pairs"),
        (["attribute", "a red mug", "--method", "x"], "method is 'x'"),
        (["attribute", "a red mug", "--items", "0"], "items is 0"),
        (["attribute", "a red mug", "--seed", str(2**63)], "seed is 9223372036854775808; it must be a whole number"),
        (["attribute", "a red mug", "--method", "trak", "dim=1000000"], "with trak it must be at most 16384"),
        (["attribute", str(tmp_path / "other-run")], "other-run is no run of carv generate (of its config"),
        (["attribute", str(tmp_path / "hub-run")], "did not train owner/model"),
        (arguments("a red mug", tmp_path / "latin", sd_folder), "is not text in UTF-8"),
        (["attribute", str(tmp_path / "large.png")], "is 40×40 pixels"),  # before any of carv-tiny's are made
        (["attribute", "a red mug", "--shard", "1"], "shard is '1'; it must be I/N"),
        (["attribute", "a red mug", "--shard", "2/2"], "the last is 1"),
        (arguments("a red mug", tmp_path / "empty", sd_folder), "holds no images"),
        (arguments("a red mug", tmp_path / "none", sd_folder), "there are no training images at"),
        (arguments(tmp_path / "large.png", data, sd_folder), "is 40×40 pixels and the model's images are 16×16"),
        (arguments(tmp_path / "text.png", data, sd_folder), "is no image that can be read"),
        (arguments("a red mug", data, tmp_path / "none"), "no diffusion model at"),
    ]
    for words, message in cases:
        assert message in refusal(capsys, *words)
    assert not list((place.parent / "cache").rglob("tiny-images*"))


def test_memory_that_runs_out_is_one_sentence(data, sd_folder, place, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("carv_3d.attribution.command._query_features", full)
    assert "memory ran out; lower query_draws" in refusal(capsys, *arguments(data / "0.png", data, sd_folder))


def test_a_store_of_another_model_is_refused(data, sd_folder, place, capsys, tmp_path, build_folder) -> None:
    other = build_folder(tmp_path / "other", seed=3)
    store = str(tmp_path / "store")
    assert cli.main(arguments(data / "0.png", data, sd_folder, "--store", store, "--out", str(tmp_path / "a"))) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "store" / "loss").iterdir()}
    capsys.readouterr()
    words = refusal(capsys, *arguments(data / "0.png", data, other, "--store", store, "--out", str(tmp_path / "b")))
    assert "was made with" in words
    changed = tmp_path / "changed"  # the same weights, read otherwise
    for part, key, value in (
        ("scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
        ("vae/config.json", "scaling_factor", 0.25),
    ):
        shutil.copytree(sd_folder, changed)
        file = changed / part
        config = json.loads(file.read_text())
        assert config[key] != value
        file.write_text(json.dumps({**config, key: value}))
        again = arguments(data / "0.png", data, changed, "--store", store, "--out", str(tmp_path / "b"))
        assert "was made with" in refusal(capsys, *again)
        shutil.rmtree(changed)
    shutil.copytree(sd_folder, changed)  # elsewhere, and else the same
    assert cli.main(arguments(data / "0.png", data, changed, "--store", store, "--out", str(tmp_path / "c"))) == 0
    assert (tmp_path / "c/scores.csv").read_text() == (tmp_path / "a/scores.csv").read_text()
    assert {p.name: p.read_bytes() for p in (tmp_path / "store" / "loss").iterdir()} == before


def test_a_folder_of_another_kind_is_no_store(data, sd_folder, place, capsys) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("seed: 0")
    asked = [*arguments(data / "0.png", data, sd_folder, "--out", "a"), "--store"]
    words = refusal(capsys, *asked, "run")
    assert "run is no store of gradients, it holds 'config.yaml'; name a new folder for --store" in words
    assert "it holds '0.png'" in refusal(capsys, *asked, str(data))
    assert [path.name for path in Path("run").iterdir()] == ["config.yaml"]
    assert "--merge names ./st, which is --store itself" in refusal(capsys, *asked, "st", "--merge", "./st")
    Path("begun").mkdir()
    Path("begun/0123456789abcdef.npy").touch()  # as a kill leaves it, before the first gradient
    Path("begun/.claims").touch()
    check_store(Path("begun"))
    check_store(Path("nowhere"))


def test_folders_of_images_with_captions_of_either_kind(tmp_path) -> None:
    save(tmp_path / "b" / "2.jpg", 0)
    save(tmp_path / "1.png", 1, 40)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b/2.jpg", "text": "a dog"}\n\n')
    (tmp_path / "1.txt").write_text("a cat")
    images = FolderImages(tmp_path, SIZE, resize=True)
    assert [images.key(i) for i in range(2)] == ["1.png", "b/2.jpg"]
    assert [images.caption(i) for i in range(2)] == ["a cat", "a dog"]
    assert images.image(0).shape == (SIZE, SIZE, 3)
    first = images.fingerprint()
    (tmp_path / "1.txt").write_text("a bird")
    assert FolderImages(tmp_path, SIZE, resize=True).fingerprint() != first
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(CarvError, match=r"line 1 of .* has no file_name; mend it"):
        FolderImages(tmp_path, SIZE, resize=True)


def test_what_is_transparent_is_white(tmp_path) -> None:
    array = np.zeros((SIZE, SIZE, 4), np.uint8)
    array[:8, :, 3] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    image = FolderImages(tmp_path, SIZE).image(0)
    assert (image[:8] == 0).all()
    assert (image[8:] == 255).all()


def test_carv_tinys_images_are_the_first_of_its_training(tmp_path) -> None:
    from carv_3d.tiny.dataset import build

    few = TinyImages(tmp_path / "few", 4, log=lambda text: None)
    more = build(tmp_path / "more", 7, seed=1, log=lambda text: None)
    assert all(np.array_equal(few.image(i), more.rgb[i]) for i in range(4))
    shot = more.shots[2]
    assert few.labels(2) == {"object": shot.obj, "color": shot.color, "material": shot.material}
    assert shot.color in few.caption(2)
    assert few.caption(2).endswith("view")
    with pytest.raises(CarvError, match="items must be 1"):
        TinyImages(tmp_path / "no", 30_001)


def test_images_are_encoded_once_and_alike_however_the_work_is_cut(data, sd_teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("carv_3d.attribution.encoded.CHUNK", 2)
    images = FolderImages(data, SIZE)
    whole = EncodedImages(images, sd_teacher, tmp_path / "whole")
    assert whole.encode()
    cut = EncodedImages(images, sd_teacher, tmp_path / "cut")
    assert not cut.encode(lambda done, total: done == 2)
    again = EncodedImages(images, sd_teacher, tmp_path / "cut")
    progress = []
    assert again.encode(lambda done, total: progress.append(done))
    assert progress == [4, 6]
    assert np.array_equal(whole.store.rows, again.store.rows)
    x = torch.from_numpy(images.image(5)).permute(2, 0, 1).float()[None] / 255
    assert torch.allclose(again.latents(5), sd_teacher.encode(x, sample=False)[0], atol=1e-5)
    assert torch.equal(again.condition(0), sd_teacher.text_embeddings(["a red mug"])[0])


def test_a_kernel_is_kept_until_the_rows_change(tmp_path, monkeypatch) -> None:
    store = RowStore(tmp_path, {}, 3, (2, 4))
    rows = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    for i in range(3):
        store.write(i, rows[i])
    first = kept_kernel(store)
    assert torch.allclose(first, kernel(rows))
    monkeypatch.setattr("carv_3d.attribution.training_rows.kernel", lambda rows: pytest.fail("made again"))
    assert torch.equal(kept_kernel(store), first)
    monkeypatch.setattr("carv_3d.attribution.training_rows.kernel", kernel)
    store.write(1, 2 * rows[1])
    assert torch.allclose(kept_kernel(store), kernel(store.rows))
    (tmp_path / "kernel.npz").write_bytes(b"damaged")
    assert torch.allclose(kept_kernel(store), kernel(store.rows))


def test_words_and_places_are_distinguished(tmp_path) -> None:
    assert query_kind("a red mug") == "prompt"
    assert query_kind("mug " * 200) == "prompt"
    save(tmp_path / "x.png", 0)
    assert query_kind(str(tmp_path / "x.png")) == "image"
    (tmp_path / "config.yaml").write_text("")
    assert query_kind(str(tmp_path)) == "run"


def test_the_second_of_two_in_one_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(CarvError, match="another run is at work in"):
        attribute(AttributeOptions(query="a red mug", out=tmp_path / "out"))


def test_a_run_is_asked_about_by_views_of_its_asset(sd_folder, sd_teacher, tmp_path) -> None:
    from carv_3d.attribution.queries import run_model, run_query
    from carv_3d.generate.config import config_to_yaml, load_config
    from carv_3d.generate.trainer import TextTo3D
    from carv_3d.io.images import to_uint8
    from carv_3d.runs.checkpoint import save_checkpoint

    small = ["system.geometry_type=voxel", "system.geometry.resolution=8", "system.renderer.num_samples_per_ray=8"]
    model = f"system.guidance.pretrained_model_name_or_path={sd_folder}"
    config = load_config(overrides=[*small, model, "seed=3"], prompt="a red mug")
    host = TextTo3D(config, sd_teacher)
    with torch.no_grad():
        for p in host.field.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    save_checkpoint(tmp_path / "checkpoint", host.state_dict())
    assert query_kind(str(tmp_path)) == "run"
    assert run_model(tmp_path) == str(sd_folder)
    query = run_query(tmp_path, sd_teacher, 4)
    host.renderer.eval()
    with torch.no_grad():
        views = to_uint8(host.views(host.orbit(4), SIZE, SIZE))
    assert np.array_equal(np.stack(query.images), views)
    prompt = host.prompts.prompt  # cut, so that the words of the views fit into the small model
    assert query.captions == [f"{prompt}, {side} view" for side in ("front", "left", "back", "right")]
    coarse = ["fine_views=false", "front_threshold=80", "back_threshold=80", "use_perp_neg=true"]
    coarse = [f"system.prompt_processor.{word}" for word in coarse]
    given = load_config(overrides=[*small, model, "seed=3", *coarse], prompt="a red mug")
    (tmp_path / "config.yaml").write_text(config_to_yaml(given))
    sides = ("front", "front", "side", "back", "back", "back", "side", "front")  # as the run's own thresholds have it
    assert run_query(tmp_path, sd_teacher, 8).captions == [f"a red, {side} view" for side in sides]  # cut as well
