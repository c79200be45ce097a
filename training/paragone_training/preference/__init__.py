"""Training preference models: recipes, stages, losses and cards."""
