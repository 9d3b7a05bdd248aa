"""Where trials run: one file a way. See :mod:`medquant.search.executors.base` for what an executor is."""
