"""Data sets, from the files on disk to augmented batches on the devices."""
