"""Metrics of a run: logging, progress display, reading back, and comparison of several runs."""
