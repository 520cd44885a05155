"""Several runs under one command, each in a process of its own."""
