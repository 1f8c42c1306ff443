"""Pictures to be judged: each from its own noise and prompt, whatever the batches, and scored as it should be."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import SCHEDULE, CountingTeacher, LinearUNet

from carv_3d.distill.evaluate import (
    counted_rows,
    ddim_pictures,
    judge_features,
    one_step_pictures,
    preview_sheet,
    score_pictures,
)
from carv_3d.distill.generator import OneStepGenerator
from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import kernel_distance
from carv_3d.evaluation.scoring import at_judged_size
from carv_3d.guidance.sampling import prompt_pictures, pure_noise
from carv_3d.tiny.classifier import VIEWS, Judge
from carv_3d.tiny.vocabulary import COLOURS, OBJECTS

PROMPTS = ["0", "1", "1", "0", "1"]


def test_a_picture_is_one_evaluation_at_its_own_noise_and_prompt() -> None:
    teacher, unet = CountingTeacher(), LinearUNet()
    teacher.prediction_type = "v_prediction"
    generator = OneStepGenerator(unet, SCHEDULE, "v_prediction")
    found = one_step_pictures(generator, teacher, PROMPTS, seed=3, batch=2)
    assert unet.rows == [2, 2, 1]
    assert found.shape == (5, 3, 2, 2)
    abar = SCHEDULE.alphas_cumprod[999]
    eps = pure_noise(teacher, 5, 3)
    with torch.no_grad():
        v = unet(eps, 999, teacher.text_embeddings(PROMPTS))[0]
    torch.testing.assert_close(found, teacher.decode(abar.sqrt() * eps - (1 - abar).sqrt() * v))
    assert torch.equal(found, one_step_pictures(unet, teacher, PROMPTS, seed=3, batch=2))  # the UNet alone
    torch.testing.assert_close(found, one_step_pictures(generator, teacher, PROMPTS, seed=3))  # one batch
    assert not torch.allclose(found, one_step_pictures(generator, teacher, PROMPTS, seed=4))


def test_the_teachers_own_begin_from_the_same_noise_and_cost_two_rows_a_step() -> None:
    teacher = CountingTeacher()
    found = ddim_pictures(teacher, PROMPTS, 2.0, steps=4, seed=3, batch=3)
    assert sum(teacher.rows) == 2 * 4 * len(PROMPTS)
    whole = prompt_pictures(teacher, PROMPTS, 2.0, 4, noise=pure_noise(teacher, 5, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, whole)


def test_rows_of_the_unet_are_counted_within_alone(sd_teacher) -> None:
    with counted_rows(sd_teacher.unet) as one:
        one_step_pictures(sd_teacher.unet, sd_teacher, ["a", "b", "c"], batch=2)
    with counted_rows(sd_teacher.unet) as many:
        ddim_pictures(sd_teacher, ["a", "b", "c"], 2.0, steps=2)
    assert one == [2, 1]
    assert many == [6, 6]


class PaintedJudge(Judge):
    """Reads classes off three pixels; its features are of the picture."""

    def forward(self, images):
        told = (images[:, :, 0, 0] * 100).round().long()
        sizes = {"object": len(OBJECTS), "colour": len(COLOURS), "view": len(VIEWS)}
        return {k: torch.nn.functional.one_hot(told[:, i], n).float() for i, (k, n) in enumerate(sizes.items())}


def test_scores_are_of_the_pictures_against_what_was_asked() -> None:
    torch.manual_seed(0)
    judge = PaintedJudge().eval()
    pictures, reference = torch.rand(4, 3, 64, 64), judge_features(judge, torch.rand(4, 3, 64, 64))
    wanted = [(o, c, VIEWS[0]) for o, c in (("mug", "red"), ("teapot", "red"), ("mug", "orange"), ("bed", "red"))]
    rows = [(list(OBJECTS).index(o), list(COLOURS).index(c), 0) for o, c, _ in wanted]
    rows[1], rows[2] = (rows[1][0] + 1, *rows[1][1:]), (rows[2][0], rows[2][1] + 1, 0)
    pictures[:, :, 0, 0] = torch.tensor(rows) / 100
    found = score_pictures(judge, pictures, wanted, reference)
    assert (found.object, found.colour, found.both) == (0.75, 0.75, 0.5)
    features = torch.cat([judge.features(p[None]) for p in pictures]).detach()
    torch.testing.assert_close(found.features, features)
    assert found.kernel.value == pytest.approx(kernel_distance(features, reference, paired=True).value, rel=1e-4)
    better = score_pictures(judge, pictures, [wanted[0], ("bed", "red", VIEWS[0]), wanted[2], wanted[3]], reference)
    assert found.ratio(better).value == found.both / better.both
    assert found.figures() == {
        "agreement_object": 0.75, "agreement_colour": 0.75, "agreement_both": 0.5,
        "kernel_distance": found.kernel.value,
    }  # fmt: skip


def test_features_do_not_depend_on_the_batches_and_larger_pictures_are_made_smaller() -> None:
    torch.manual_seed(0)
    judge, pictures = Judge().eval(), torch.rand(5, 3, 128, 128)
    small = at_judged_size(pictures)
    assert small.shape == (5, 3, 64, 64)
    torch.testing.assert_close(small.mean(), pictures.mean(), atol=2e-3, rtol=0)
    torch.testing.assert_close(judge_features(judge, pictures, batch=2), judge_features(judge, small, batch=5))


def test_a_sheet_shows_each_picture_over_its_caption(tmp_path) -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    pictures = colours[:, :, None, None].expand(-1, -1, 64, 64)
    path = tmp_path / "sheet.png"
    preview_sheet(pictures, path, ["a red mug", "a 緑\nhat", "a blue " + "very " * 30 + "long caption"], columns=2)
    sheet = np.asarray(Image.open(path))
    height = 128 + 14
    assert sheet.shape == (2 * height + 4, 2 * 128 + 4, 3)
    for i, colour in enumerate(colours.tolist()):
        top, left = (i // 2) * (height + 4), (i % 2) * (128 + 4)
        assert (sheet[top : top + 128, left : left + 128] == np.array(colour) * 255).all()
        caption = sheet[top + 128 : top + height, left : left + 128]
        assert 20 < (caption < 128).all(-1).sum() < caption[..., 0].size / 2  # black on white
        assert (sheet[top : top + height, left + 128 : left + 132] == 255).all()  # none runs into its neighbour
    assert (sheet[height + 4 :, 132:] == 255).all()
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    with pytest.raises(CarvError, match="each needs its own"):
        preview_sheet(pictures, path, ["one"])
