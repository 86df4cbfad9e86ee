"""Training data in tar archives, near or far: found, fetched, cached, read."""
