"""Pickle functions, arguments and results that are not plain data.

cloudpickle does the work. This package adds what a service needs whose two ends are different
processes, at different times, and perhaps of different Python versions:

- The same function gives the same bytes, and classes that are pickled by value are identified by
  their content (pickler.py).
- A reader's own classes are found and stay unchanged; bytecode of another Python is rejected before
  it is loaded (reader.py, code.py).
- Objects of functools can be pickled: caches and cached properties (caches.py), functions with
  single dispatch (dispatches.py).
- A reference to a stored value becomes the value where it is read (object_ref.py).

Stored pickles name functions of this package by their path, so these must not move.
"""

from oncue.pickles.code import PYTHON, short_name
from oncue.pickles.homes import HOMES
from oncue.pickles.object_ref import ObjectRef
from oncue.pickles.pickler import Pickler, dumps
from oncue.pickles.reach import Reach
from oncue.pickles.reader import loads

__all__ = ["HOMES", "PYTHON", "ObjectRef", "Pickler", "Reach", "dumps", "loads", "short_name"]
