"""Generation and editing of images with metadata, in memory and on files."""
