"""The rows that a run keeps on disk, and its random streams."""
