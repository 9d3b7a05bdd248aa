"""The native engine's library, and the programs handed to it."""
