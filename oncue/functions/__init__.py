"""Pack and load user functions. A function's id is the hash of its content.

    client: pack_function(fn) | pack_file("tomo.py", "reconstruct")  ──► Packed(id, body)
    server: describe(body) ──► its metadata; runs and unpickles nothing
    worker: load_function(body) ──► the callable

What is sent depends on where the function is defined:

- **in a file of yours** (not installed with pip): the source of its module and of every module of
  yours that it imports. The worker makes them importable under their names while one of their
  functions runs. Lines in tracebacks, classes of arguments and results, and locks and caches at
  module level are thus the same as on your side.
- **in an installed package or the standard library**: its name. The worker must have the package.
- **in a script, notebook or prompt; closures and lambdas**: a pickle by value, as by cloudpickle,
  with the values that they use. Bytecode fits one minor version of Python only. If the worker has
  another, a function at the top level of a script is rebuilt from the part of the script that it
  needs.
"""

from oncue.functions.body import FunctionBody, Packed, describe
from oncue.functions.files import import_root, pack_file, parameters_in_file, split_place
from oncue.functions.load import Loaded, load, load_function
from oncue.functions.options import FunctionOptions, function, options_of
from oncue.functions.pack import pack_function
from oncue.functions.shell.pack import shell

__all__ = [
    "FunctionBody",
    "FunctionOptions",
    "Loaded",
    "Packed",
    "describe",
    "function",
    "import_root",
    "load",
    "load_function",
    "options_of",
    "pack_file",
    "pack_function",
    "parameters_in_file",
    "shell",
    "split_place",
]
