"""What the tables of primitives hold: their kinds, how they join, their materials and the layout of a row."""

from __future__ import annotations

import numpy as np

RADIUS = 0.84

SPHERE, BOX, CYLINDER, CONE, TORUS, CAPSULE, ELLIPSOID = range(7)
UNION, SUBTRACT, INTERSECT = range(3)

# Index 0 is the color that the prompt names; the others are fixed accents, as few as an object needs.
MAIN, DARK, CREAM, WOOD, LEAF, ORANGE, SKY, STEEL = range(8)
ACCENTS = np.array(
    [
        [0.0, 0.0, 0.0],  # MAIN, replaced by the object's color
        [0.16, 0.16, 0.18],
        [0.94, 0.88, 0.74],
        [0.48, 0.30, 0.16],
        [0.20, 0.50, 0.18],
        [0.96, 0.56, 0.12],
        [0.62, 0.80, 0.92],
        [0.66, 0.68, 0.72],
    ]
)

ROW = 21  # kind, op, material, k, centre 3, rotation 9, parameters 4, one spare
