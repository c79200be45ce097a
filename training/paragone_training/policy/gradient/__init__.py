"""Gradient steps of a policy: passes, the trainer, and what is checked before the first step."""
