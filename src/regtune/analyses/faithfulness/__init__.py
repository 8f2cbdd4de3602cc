"""Whether explanations are faithful."""
