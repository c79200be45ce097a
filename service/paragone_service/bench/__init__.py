"""``paragone bench``: a model's speed on this machine, beside plain transformers and a server that runs already."""

__all__ = ["BenchError"]


class BenchError(ValueError):
    """Refuse a measurement: an option, a text or a server does not allow it."""
