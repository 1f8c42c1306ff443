"""carv-tiny, the built-in teacher: its shapes, captions, training, weights, and its classifier."""
