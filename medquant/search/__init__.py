"""Searches over what a network is made of: bits of its layers, and whole sweeps of runs."""
