"""Statistics over seeds and examples; knows no task."""
