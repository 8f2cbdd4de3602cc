"""Models with an encoder and a decoder, of which the encoder gets the registers."""
