"""`carv variance`: what each estimator's gradient varies, by its sources, and what its seconds buy."""
