"""Measurements on a GPU: each file says what it needs, and its goals."""
