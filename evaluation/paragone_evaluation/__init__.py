"""Evaluation: how well a model, hosted or local, agrees with people, and how far its probabilities can be believed.

``readers`` turn files into one form, ``scorers`` ask a model, ``measures`` are pure arithmetic on arrays, ``report``
writes what people read.
"""
