"""A step of `carv generate` stays within few files: 94 borders were crossed when they were first counted."""

from __future__ import annotations

from file_borders import crossings, step_calls


def test_a_step_crosses_at_most_half_of_the_borders_that_it_crossed() -> None:
    assert crossings(step_calls(["geometry_type=voxel", "lambda_opaque=0"])) <= 47  # the scene of the first count
    assert crossings(step_calls([])) <= 52  # the default, with a loss and an annealed option more than that had
