"""The metrics by name: what they are called, which are scores, and plainly what each one measures."""

from __future__ import annotations

from dataclasses import dataclass

from carv_3d.report.page import CURVES

AXIS_LABELS = {"seconds": "seconds", "steps": "steps", "nfe": "NFE", "renders": "renders"}
AXIS_NOTES = {
    "seconds": "Training time: a run's seconds in its steps alone, without evaluation, files or other runs.",
    "steps": "Steps of the optimizer.",
    "nfe": "Evaluations of the network for one sample: two for each draw under classifier-free guidance.",
    "renders": "Images that were rendered, encoded and differentiated.",
}
# Columns that are settings or counters, and no result of a run.
SETTINGS = frozenset({
    "lr", "guidance_scale", "guidance_scale_lora", "min_step", "max_step", "K", "K_lora", "samples", "max_batch",
    "nonfinite", "nonfinite_lora", "skipped",
})  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """title and y label of its charts, and its meaning; `score`: higher is better, so a target can be reached."""

    title: str
    label: str
    meaning: str
    score: bool = False


METRICS: dict[str, Metric] = {
    "iou": Metric(
        "Silhouette IoU with the true shape",
        "IoU",
        "Overlap of the asset's silhouettes with those of the object that carv-tiny was trained on, in the same "
        "color and pose, over 16 views of 64 by 64. It knows nothing of what is inside a silhouette, and exists "
        "for the built-in teacher alone.",
        True,
    ),
    "psnr": Metric(
        "PSNR against the true shape",
        "dB",
        "Of the same 16 views against true renders on white. A blurred mean scores well, and a good asset that is "
        "turned or differently proportioned scores badly.",
        True,
    ),
    "classifier_object": Metric(
        "The classifier: it is the object",
        "probability",
        "How sure a small classifier, trained on renders of the same 40 objects and with no part in the runs, is of "
        "the prompt's object, over the views. It knows no other objects and says nothing of beauty.",
        True,
    ),
    "classifier_color": Metric(
        "The classifier: it has the color", "probability", "As above, of the prompt's color among twelve.", True
    ),
    "classifier_material": Metric(
        "The classifier: it has the material", "probability", "As above, of plain, striped or spotted.", True
    ),
    "agreement_both": Metric(
        "The classifier names object and color",
        "share of images",
        "Of one-step images of fixed prompts, the share in which the classifier names both the object and the color "
        "that were asked for. It says nothing of beauty or variety: a generator that makes one good image of each "
        "prompt has all of it.",
        True,
    ),
    "agreement_object": Metric(
        "The classifier names the object", "share of images", "As above, the object alone.", True
    ),
    "agreement_color": Metric("The classifier names the color", "share of images", "As above, the color alone.", True),
    "kernel_distance": Metric(
        "Kernel distance to true renders",
        "squared MMD",
        "The unbiased squared MMD with KID's kernel between the classifier's features of one-step images and of true "
        "renders of the same prompts, lower is better, 0 in expectation for true renders. The features are not "
        "Inception's: it compares with no published KID.",
    ),
    "w2": Metric(
        "Exact W2 to the teacher's distribution",
        "W2",
        "Between equally many samples of the generator and of the exact mixture, by optimal assignment, lower is "
        "better. Two samples of the mixture itself are not at 0: that floor is stated next to it.",
    ),
    "clip_score": Metric(
        "CLIP score",
        "100 x cosine",
        "Cosine between CLIP's embeddings of the views and of the prompt (torchmetrics). The paper's measure of "
        "convergence; it was made for photographs and is coarse on untextured shapes.",
        True,
    ),
    "seconds_per_step": Metric("Seconds per step", "seconds", "Of a whole step, by the clock of the machine."),
}  # fmt: skip
SCORES = tuple(name for name, metric in METRICS.items() if metric.score)


def metric(name: str) -> Metric:
    """What is known of a column, at least its name."""
    if name in METRICS:
        return METRICS[name]
    for columns, title, label, meaning in CURVES:
        if name in columns:
            part = name.split("_", 1)[-1]
            return Metric(f"{title}: {part}" if len(columns) > 1 else title, label, meaning)
    return Metric(name, name, "As the run logged it.")


def order(names: list[str]) -> list[str]:
    """Scores first, then what a report shows, then the rest by name; settings and counters are left out."""
    shown = [column for columns, *_ in CURVES for column in columns]
    first = [*METRICS, *(name for name in shown if name not in METRICS)]
    rest = sorted(set(names) - set(first) - SETTINGS)
    return [name for name in [*first, *rest] if name in names]
