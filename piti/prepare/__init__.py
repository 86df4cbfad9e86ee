"""Training data made of photographs alone, or of a downloaded data set."""
