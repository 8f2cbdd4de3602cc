"""The mechanism: registers in a model, and out again."""
