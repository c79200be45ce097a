"""Generative judges behind an OpenAI-compatible chat server: how they are asked, read, paid for and remembered."""
