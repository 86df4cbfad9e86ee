"""What generated images are worth: distances to real ones, diversity, agreement with their conditions."""
