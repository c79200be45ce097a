"""Training: preference models, their evaluation, the mathematics of policies. Reaches the service only over HTTP."""
