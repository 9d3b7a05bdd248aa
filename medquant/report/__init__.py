"""Pictures and tables of results; everything here takes plain values and knows no network."""
