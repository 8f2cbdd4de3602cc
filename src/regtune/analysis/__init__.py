"""Looking inside a model: attributions whose conservation law is checked before anyone sees a score."""
