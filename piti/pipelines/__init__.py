"""From a condition to images: the pipeline, its options, the cascade and its canvas."""
