"""Which tokens an output rests on."""
