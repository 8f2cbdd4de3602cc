"""Feed-forward neurons in words."""
