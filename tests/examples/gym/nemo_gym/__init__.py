"""A stand-in for NeMo Gym, which needs a newer Python than we test with: what its resources servers see of it.

After ``base_resources_server.py`` and ``judge.py`` of 0.7.0: names, fields and routes, in our own words.
"""
