"""Data files that are dropped on the page: read in a process of their own, and kept nowhere."""
