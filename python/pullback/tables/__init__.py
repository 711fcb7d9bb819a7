"""The tables: all there is to say about the primitives, one row for each."""
