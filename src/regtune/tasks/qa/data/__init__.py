"""Reading question-answering sets: files, hub sets, the embedded set."""
