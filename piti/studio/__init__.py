"""The studio: a page and an HTTP interface on which conditions are drawn and photographs made of them."""
