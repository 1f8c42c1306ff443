"""carv-tiny, the built-in teacher: its shapes, captions, training and weights, and the classifier beside it."""
