"""``paragone bench``: how fast a model is on this machine, beside plain transformers and a server that runs already."""
