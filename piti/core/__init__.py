"""What every part builds on: errors, specs, seeds, files, images, processes."""
