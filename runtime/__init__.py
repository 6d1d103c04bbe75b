"""Around a run: processes, signals, threads, and the checks before it starts."""
