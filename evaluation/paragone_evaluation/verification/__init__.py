"""``paragone verify``: does a server give the numbers that its model gives, and if not, why?

golden.py has the texts that are asked about, servers.py asks a server in its own dialect, reference.py reads the same
texts with plain transformers, rightly and in the ways in which servers go wrong, causes.py compares, command.py is the
command and its table. Left out: models whose answers are about two responses at once.
"""
