"""Attribution: which tokens matter for an output."""
