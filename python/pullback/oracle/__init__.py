"""The primitives as a mathematician writes them: pure functions on plain arrays.

They are the fallback where there is no native code, and what native code is tested against. What
calls them checks and broadcasts the arguments and silences warnings.
"""
