"""Pickles of what people write: functions, arguments and results that are no plain data. cloudpickle does the work; here is
what it lacks for a service whose two ends are other processes, of other days, and of another Python perhaps:

- the same function gives the same bytes, and classes that travel by value are known by their content (pickler.py);
- a reader's own classes stay as they are and are found again, bytecode of another Python is told before it is made (reader.py);
- what functools makes travels: caches and cached properties (caches.py), functions that dispatch (dispatches.py).
"""

from oncue.pickles.code import PYTHON, short_name
from oncue.pickles.homes import HOMES
from oncue.pickles.pickler import Pickler, dumps
from oncue.pickles.reach import Reach
from oncue.pickles.reader import loads

__all__ = ["HOMES", "PYTHON", "Pickler", "Reach", "dumps", "loads", "short_name"]
