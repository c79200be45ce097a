"""The preference oracle of a run: asked over HTTP, or started with it."""
