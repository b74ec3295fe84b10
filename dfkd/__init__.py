"""Distil a vision-language teacher into a small image classifier without a single real image."""

__version__ = "0.1.0"
