"""Tasks: what is learnt, one room or file each; found through the registry."""
