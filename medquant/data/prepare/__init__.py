"""From a download, or from nothing, to a dataset folder that medquant and other programs read."""
