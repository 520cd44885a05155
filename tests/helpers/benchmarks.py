"""Benchmarks that run small by themselves, with --quick."""

NAMES = ['compile', 'loop', 'ops', 'scaling', 'step']
