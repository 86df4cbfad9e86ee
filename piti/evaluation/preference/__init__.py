"""Preference studies: the page, its votes, and their statistics."""
