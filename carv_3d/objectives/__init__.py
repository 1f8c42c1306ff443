"""What is distilled: one pure residual for each objective, a table of them by name, the loss of a trained score."""
