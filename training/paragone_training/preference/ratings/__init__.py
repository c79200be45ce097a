"""Models that rate attributes: ``regression``, and ``helpsteer``, which adds a reward to one."""
