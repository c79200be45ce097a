"""Preference data: reading pair files, grouping pairs by prompt, and planning batches."""
