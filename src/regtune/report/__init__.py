"""Records -> one self-contained page, its tables and its figures. Nothing here needs a model or an accelerator."""
