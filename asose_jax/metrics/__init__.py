"""Metrics of a run: logging, progress, reading back, results by class, comparison of runs."""
