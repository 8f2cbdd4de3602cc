"""Fine-tuning: one entry on top of transformers.Trainer."""
