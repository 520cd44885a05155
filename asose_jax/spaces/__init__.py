"""Search spaces, the supernet, and tables of published accuracies."""
