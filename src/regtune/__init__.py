"""Register-augmented fine-tuning of pretrained transformers."""
