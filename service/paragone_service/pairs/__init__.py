"""Models that read both responses of a comparison at once, and answers made of their comparisons."""
