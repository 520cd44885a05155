"""Services of the host process: signals, workdir, log, compilation cache; no network code."""
