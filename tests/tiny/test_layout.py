import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from carv_3d.tiny import layout
from carv_3d.tiny.tokens import CELLS, LENGTH, WORDS


def encoder(positions: int, layers: int, seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=positions, projection_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def test_cells_are_the_patches_of_the_latent_row_by_row() -> None:
    z = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    cells = layout.latent_cells(z)
    assert cells.shape == (2, CELLS, 3 * 4)
    assert torch.equal(cells[1, 6].view(3, 2, 2), z[1, :, 2:4, 4:6])  # cell 6: second row, third column


def test_a_grown_encoder_says_the_same_of_the_words() -> None:
    older, text = encoder(WORDS, 2), encoder(LENGTH, 3, seed=1)
    ids = torch.randint(30, (5, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = text(ids).last_hidden_state[:, :WORDS]
        expected = older(ids[:, :WORDS]).last_hidden_state
        assert not torch.allclose(before, expected, atol=0.1)
        layout.grow(text, older)
        torch.testing.assert_close(text(ids).last_hidden_state[:, :WORDS], expected)


def test_the_loss_is_the_error_of_the_layout_and_a_little_of_the_distance_to_the_older_words() -> None:
    older, model = encoder(WORDS, 2), layout.Layout(encoder(LENGTH, 2, seed=1), width=32)
    ids, z = torch.arange(2 * LENGTH).view(2, LENGTH) % 30, torch.randn(2, 4, 16, 16)
    hidden = model.text(ids).last_hidden_state
    patches = model.head(hidden[:, WORDS:]).view(2, 4, 4, 4, 4, 4)  # cell row, cell column, channel, row, column
    error = (patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 16, 16) - z).square().mean()
    torch.testing.assert_close(layout.loss(model, z, ids), error)
    apart = (hidden[:, :WORDS] - older(ids[:, :WORDS]).last_hidden_state).square().mean()
    torch.testing.assert_close(layout.loss(model, z, ids, older), error + 0.05 * apart)


def test_the_layout_of_two_captions_is_learnt_from_their_images() -> None:
    """The mean of the images under each caption: what is left of the error is their own variance."""
    g = torch.Generator().manual_seed(0)
    model, ids = layout.Layout(encoder(LENGTH, 1), width=32), torch.ones(16, LENGTH, dtype=torch.long)
    ids[:, 1], ids[8:, 2] = 5, 7  # one word apart
    means = torch.randn(2, 4, 16, 16, generator=g).repeat_interleave(8, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        layout.loss(model, means + 0.3 * torch.randn(means.shape, generator=g), ids).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = model(ids)[1]
    assert float((predicted - layout.latent_cells(means)).square().mean()) < 0.02  # of 1, the means' own
    assert isinstance(model.head, nn.Linear)
