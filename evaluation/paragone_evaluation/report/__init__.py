"""The one look of all reports: ``page`` from plain blocks, ``charts`` as inline SVG, numbers in ``words``.

It knows nothing of what is reported, so that evaluations, benches and policy runs all use it.
"""
