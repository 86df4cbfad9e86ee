"""The studio: a web page and an HTTP interface for drawing conditions and generating images from them."""
