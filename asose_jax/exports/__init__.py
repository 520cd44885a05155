"""Files of a trained network that run without this package."""
