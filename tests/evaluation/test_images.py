"""Images to be scored: each from its own noise and prompt, whatever the batches, and scored as it should be."""

import numpy as np
import pytest
import torch
from distill_one_step import counted_nfe
from image_scores import classifier_features, ddim_images, one_step_images, score_images
from PIL import Image
from small import SCHEDULE, CountingTeacher, LinearUNet

from carv_3d.distill.network import OneStepGenerator
from carv_3d.errors import CarvError
from carv_3d.evaluation.distances import kernel_distance
from carv_3d.evaluation.scoring import at_classifier_size
from carv_3d.guidance.sampling import prompt_images, pure_noise
from carv_3d.io.images import preview_sheet
from carv_3d.tiny.classifier import VIEWS, Classifier
from carv_3d.tiny.vocabulary import COLORS, OBJECTS

PROMPTS = ["0", "1", "1", "0", "1"]


def test_a_image_is_one_evaluation_at_its_own_noise_and_prompt() -> None:
    teacher, unet = CountingTeacher(), LinearUNet()
    teacher.prediction_type = "v_prediction"
    generator = OneStepGenerator(unet, SCHEDULE, "v_prediction")
    images = one_step_images(generator, teacher, PROMPTS, seed=3, batch=2)
    assert unet.batch_sizes == [2, 2, 1]
    assert images.shape == (5, 3, 2, 2)
    abar = SCHEDULE.alphas_cumprod[999]
    eps = pure_noise(teacher, 5, 3)
    with torch.no_grad():
        v = unet(eps, 999, teacher.text_embeddings(PROMPTS))[0]
    torch.testing.assert_close(images, teacher.decode(abar.sqrt() * eps - (1 - abar).sqrt() * v))
    assert torch.equal(images, one_step_images(unet, teacher, PROMPTS, seed=3, batch=2))  # the UNet alone
    torch.testing.assert_close(images, one_step_images(generator, teacher, PROMPTS, seed=3))  # one batch
    assert not torch.allclose(images, one_step_images(generator, teacher, PROMPTS, seed=4))


def test_the_teachers_own_begin_from_the_same_noise_and_have_an_nfe_of_two_a_step() -> None:
    teacher = CountingTeacher()
    images = ddim_images(teacher, PROMPTS, 2.0, steps=4, seed=3, batch=3)
    assert sum(teacher.batch_sizes) == 2 * 4 * len(PROMPTS)
    whole = prompt_images(teacher, PROMPTS, 2.0, 4, noise=pure_noise(teacher, 5, 3)).permute(0, 3, 1, 2)
    torch.testing.assert_close(images, whole)


def test_the_nfe_is_counted_within_alone(sd_teacher) -> None:
    with counted_nfe(sd_teacher.unet) as counted:
        one_step_images(sd_teacher.unet, sd_teacher, ["a", "b", "c"], batch=2)
    with counted_nfe(sd_teacher.unet) as many:
        ddim_images(sd_teacher, ["a", "b", "c"], 2.0, steps=2)
    assert counted == [2, 1]
    assert many == [6, 6]


class PaintedClassifier(Classifier):
    """Reads classes off three pixels; its features are of the image."""

    def forward(self, images):
        classes = (images[:, :, 0, 0] * 100).round().long()
        sizes = {"object": len(OBJECTS), "color": len(COLORS), "view": len(VIEWS)}
        return {k: torch.nn.functional.one_hot(classes[:, i], n).float() for i, (k, n) in enumerate(sizes.items())}


def test_scores_are_of_the_images_against_what_was_asked() -> None:
    torch.manual_seed(0)
    classifier = PaintedClassifier().eval()
    images, reference = torch.rand(4, 3, 64, 64), classifier_features(classifier, torch.rand(4, 3, 64, 64))
    targets = [(o, c, VIEWS[0]) for o, c in (("mug", "red"), ("teapot", "red"), ("mug", "orange"), ("bed", "red"))]
    rows = [(list(OBJECTS).index(o), list(COLORS).index(c), 0) for o, c, _ in targets]
    rows[1], rows[2] = (rows[1][0] + 1, *rows[1][1:]), (rows[2][0], rows[2][1] + 1, 0)
    rows[3] = (rows[3][0], rows[3][1] + 2, 0)
    images[:, :, 0, 0] = torch.tensor(rows) / 100
    scores = score_images(classifier, images, targets, reference)
    assert (scores.object, scores.color, scores.both) == (0.75, 0.5, 0.25)
    features = torch.cat([classifier.features(p[None]) for p in images]).detach()
    torch.testing.assert_close(scores.features, features)
    assert scores.kernel.value == pytest.approx(kernel_distance(features, reference, paired=True).value, rel=1e-4)
    better = score_images(classifier, images, [targets[0], ("bed", "red", VIEWS[0]), targets[2], targets[3]], reference)
    assert scores.ratio(better).value == scores.both / better.both
    assert scores.figures() == {
        "agreement_object": 0.75, "agreement_color": 0.5, "agreement_both": 0.25,
        "kernel_distance": scores.kernel.value,
    }  # fmt: skip


def test_features_do_not_depend_on_the_batches_and_larger_images_are_made_smaller() -> None:
    torch.manual_seed(0)
    classifier, images = Classifier().eval(), torch.rand(5, 3, 128, 128)
    small = at_classifier_size(images)
    assert small.shape == (5, 3, 64, 64)
    torch.testing.assert_close(small.mean(), images.mean(), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        classifier_features(classifier, images, batch=2), classifier_features(classifier, small, batch=5)
    )


def test_a_sheet_shows_each_image_over_its_caption(tmp_path) -> None:
    colors = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    images = colors[:, :, None, None].expand(-1, -1, 64, 64)
    path = tmp_path / "sheet.png"
    preview_sheet(images, path, ["a red mug", "a 緑\nhat", "a blue " + "very " * 30 + "long caption"], columns=2)
    sheet = np.asarray(Image.open(path))
    height = 128 + 14
    assert sheet.shape == (2 * height + 4, 2 * 128 + 4, 3)
    for i, color in enumerate(colors.tolist()):
        top, left = (i // 2) * (height + 4), (i % 2) * (128 + 4)
        assert (sheet[top : top + 128, left : left + 128] == np.array(color) * 255).all()
        caption = sheet[top + 128 : top + height, left : left + 128]
        assert 20 < (caption < 128).all(-1).sum() < caption[..., 0].size / 2  # black on white
        assert (sheet[top : top + height, left + 128 : left + 132] == 255).all()  # none runs into its neighbour
    assert (sheet[height + 4 :, 132:] == 255).all()
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    with pytest.raises(CarvError, match="each needs its own"):
        preview_sheet(images, path, ["one"])
