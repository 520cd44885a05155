"""Architecture parameters (alpha) and descriptions of networks; knows no layer."""
