"""Layers, candidate operations, and the mixed operation that chooses among them."""
