"""``paragone annotate``: what a model says about each row of data files, for files of any length.

rows.py numbers the rows and cuts them into chunks, reading.py reads large files in a process of its own, kinds.py has
what is asked about a row and what its answer becomes, asking.py asks for chunks, several at once, files.py keeps what
is done and finishes the output, trainer_pairs.py makes pairs for trainers, run.py is the order of it all, command.py
the command. Left out: torch, and local models.
"""
