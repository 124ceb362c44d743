"""RoPE scalings of one model compared without training: probed on short rows, then verified."""
