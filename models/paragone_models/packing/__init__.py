"""The packed forward pass: no padding, and every shared prefix computed once."""
