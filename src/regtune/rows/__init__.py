"""Examples as rows that a model reads, the classes of their tokens, and what of a row's outputs is explained."""
