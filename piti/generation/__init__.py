"""Images and edits with their metadata, in memory and from files to files."""
