"""Norms, massive activations, outliers, and what 8 bits cost."""
