"""Which families each check covers, and why not the others; the tables of docs/TEACHERS.md are made from it."""

from __future__ import annotations

RUNS = "yes"
FAMILIES = (
    "Stable Diffusion 1, 2", "Stable Diffusion XL", "Playground 2.5", "Stable Diffusion 3", "Stable Diffusion 3.5",
    "FLUX.1", "PixArt-alpha", "PixArt-sigma", "SANA", "DeepFloyd IF",
)  # fmt: skip
CHECKS = {  # by the column's name, the test that shows it
    "prompt embeddings": "tests/teachers/test_families.py::test_the_text_is_the_pipelines",
    "prediction": "tests/teachers/test_families.py::test_the_first_step_is_the_pipelines",
    "SDS gradient": "tests/teachers/test_families.py::test_the_gradient_of_score_distillation_is_that_by_hand",
    "K = 8 unbiased": "tests/teachers/test_families.py::test_eight_draws_have_the_mean_of_one",
    "half precision": "tests/guidance/test_half_families.py::test_the_gradient_is_within_a_hundredth_of_float32",
    "threestudio": "tests/extension/test_host_families.py::test_a_family_guides_or_is_refused",
}
LARGE = "as PixArt-sigma: the same network, for large images"
PROMPTS = "no: its prompt processors are for Stable Diffusion 1, 2, XL and DeepFloyd IF"
HOSTS = {
    "Stable Diffusion 1, 2": "carv-stable-diffusion-guidance",
    "Stable Diffusion XL": "carv-stable-diffusion-xl-guidance",
    "Playground 2.5": "carv-stable-diffusion-xl-guidance",
    "DeepFloyd IF": "carv-deep-floyd-guidance",
}
WHY_NOT = {("PixArt-alpha", check): LARGE for check in ("K = 8 unbiased", "half precision")} | {
    (family, "threestudio"): PROMPTS for family in FAMILIES if family not in HOSTS
}


def families(check: str) -> list[str]:
    """Those that a check covers."""
    assert check in CHECKS
    return [family for family in FAMILIES if (family, check) not in WHY_NOT]


def checks_table() -> str:
    """Families and checks in Markdown."""
    rows = [f"| family | {' | '.join(CHECKS)} |", "|---" * (1 + len(CHECKS)) + "|"]
    for family in FAMILIES:
        rows.append(f"| {family} | {' | '.join(WHY_NOT.get((family, check), RUNS) for check in CHECKS)} |")
    return "\n".join(rows)
