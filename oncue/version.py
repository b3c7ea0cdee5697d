"""Version of oncue.

Apart from `oncue/__init__.py`, so that packing a function need not import that.
"""

__version__ = "0.1.0"
