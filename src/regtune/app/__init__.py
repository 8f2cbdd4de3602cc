"""The explorer: one or two models in the browser, drawn by the blocks of the report."""
