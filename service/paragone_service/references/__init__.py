"""Reference sets: representations of responses to many prompts, stored by name."""
