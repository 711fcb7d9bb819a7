"""Pullback beside other libraries: the same computations in each, checked, then timed in turns."""
