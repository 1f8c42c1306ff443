"""One-step distillation by distribution matching (arXiv 2311.18828, 2405.14867) on the estimator."""
