"""What is measured inside a model, one room or file each."""
