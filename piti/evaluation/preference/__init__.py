"""Preference studies: the page, its votes, and what they say."""
