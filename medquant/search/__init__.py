"""Sweeps: many runs of one file, each once, whatever happens in between."""
