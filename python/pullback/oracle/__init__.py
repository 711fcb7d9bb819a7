"""The primitives' mathematics in NumPy: pure functions on plain arrays.

They are the fallback without native code, and the oracle that native code is tested against. Their
callers check and broadcast arguments, and silence warnings.
"""
