"""Measures the limits of one Redis, one API process and many workers."""
