"""Training data in local or remote tar archives: listing, downloading, caching and reading."""
