"""The errors on docs/debugging.md, made to happen; the commands on it, run."""
