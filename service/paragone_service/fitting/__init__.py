"""Heads fitted by a running server: to pairs that somebody judged, on the backbone of a model that it hosts."""
