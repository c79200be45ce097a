"""One file a family of checkpoints: how it is told from the others, and how it is read."""
