"""From tables of preferences to labelled pairs, and what can be known of them."""
