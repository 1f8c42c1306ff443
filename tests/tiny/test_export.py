"""The exported folder: loads as any other, in half precision, with the scaling that was given."""

import json

import torch
from safetensors.torch import load_file

from carv_3d.teachers.stable_diffusion import StableDiffusionTeacher
from carv_3d.tiny import autoencoder, denoiser
from carv_3d.tiny.export import export
from carv_3d.tiny.tokens import END, LENGTH, START, build_tokenizer


def test_exported_folder_loads_as_any_other_and_gives_the_same_noise(tmp_path) -> None:
    from diffusers import AutoencoderKL

    folder = tmp_path / "words"
    tokenizer = build_tokenizer(folder)
    torch.manual_seed(1)
    vae = AutoencoderKL(**autoencoder.config())
    model = denoiser.Denoiser(len(tokenizer), *tokenizer.convert_tokens_to_ids([START, END])).eval()
    out = tmp_path / "weights"
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():  # what is exported is the average, whatever the model has become
        parameter.data.add_(1.0)
    for text in (None, "# what it is"):  # the second replaces the first
        if text is not None:
            (out / "README.md").write_text(text)
        export(out, vae, 0.7, model, averaged, tokenizer, folder)
    model.load_state_dict(averaged)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights", "words"]
    assert (out / "README.md").read_text() == "# what it is"
    assert sum(p.stat().st_size for p in out.rglob("*")) < 30e6
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (out / "tokenizer" / name).exists()
    keys = load_file(out / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") and not key.startswith("text_model.text_model.") for key in keys)
    assert {value.dtype for value in keys.values() if value.is_floating_point()} == {torch.float16}
    assert json.loads((out / "vae" / "config.json").read_text())["scaling_factor"] == 0.7
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["beta_schedule"]) == ("v_prediction", "scaled_linear")
    teacher = StableDiffusionTeacher.load(str(out))
    assert (teacher.image_size, teacher.latent_size, teacher.latent_channels) == (64, 16, 4)
    prompt, t, z = "a red mug, front view", torch.tensor([300]), torch.randn(1, 4, 16, 16)
    ids = tokenizer(prompt, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        v, schedule = model(z, t, ids), teacher.schedule
        expected = schedule.alpha(t).view(-1, 1, 1, 1) * v + schedule.sigma(t).view(-1, 1, 1, 1) * z
        got = teacher.eps_hat(z, t, teacher.text_embeddings([prompt]))
    torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)  # weights in half precision
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        mean = vae.encode(2 * image - 1).latent_dist.mean
        torch.testing.assert_close(teacher.encode(image, sample=False), 0.7 * mean, atol=2e-2, rtol=2e-2)
        decoded = (vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(teacher.decode(0.7 * mean), decoded, atol=2e-2, rtol=2e-2)
