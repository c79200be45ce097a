"""What people read: a table on the terminal and one self-contained page; both from the values of ``results.json``."""
