"""Model files: finding, recognising, loading, saving and identifying them."""
