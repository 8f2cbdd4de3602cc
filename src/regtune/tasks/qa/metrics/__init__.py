"""The official metrics of question answering."""
