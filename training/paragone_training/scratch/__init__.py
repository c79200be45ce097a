"""The demonstrations from random weights: tokenizer, language modelling, lexical start and teachers."""
