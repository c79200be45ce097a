"""The pages of the documentation site that are written from the code: one module each, all of them pure functions."""
