"""How a model is changed and trained."""
