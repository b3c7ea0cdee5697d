"""Pack and unpack people's functions, named by the hash of their content.

    client: pack_function(fn) | pack_file("tomo.py", "reconstruct")  ──► Packed(id, body)
    server: describe(body): reads what the body says of itself; runs and unpickles nothing
    worker: load_function(body) ──► the callable

How a function travels:

- **from a file of yours** (not installed with pip): its module's source and the source of every module of yours that it
  imports; the worker makes them importable under their names while one of its functions runs. So lines in tracebacks,
  classes of arguments and results, locks and caches at module level are what they are on your side.
- **from an installed package, or the standard library**: by its name. The worker must have the package.
- **from a script, a notebook or a prompt, closures and lambdas**: by value, as cloudpickle does, with the values of what
  they use. Bytecode fits one minor version of Python only; where the worker has another, a function that stands at the top
  level of a script is built again from the part of the script that it needs.
"""

from oncue.functions.body import FunctionBody, Packed, describe
from oncue.functions.files import import_root, pack_file, parameters_in_file
from oncue.functions.load import Loaded, load, load_function
from oncue.functions.pack import pack_function
from oncue.functions.watch import Watch

__all__ = [
    "FunctionBody",
    "Loaded",
    "Packed",
    "Watch",
    "describe",
    "import_root",
    "load",
    "load_function",
    "pack_file",
    "pack_function",
    "parameters_in_file",
]
