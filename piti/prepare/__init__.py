"""Preparing training data from photographs, or from downloaded data sets."""
