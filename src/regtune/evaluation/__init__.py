"""From logits to answers, metrics and statistics."""
