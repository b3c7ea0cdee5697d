"""Functions packed by a script of a person's, and called in a fresh process, as a worker is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def packed_by(folder: Path, source: str, expression: str, seed: str = "0", name: str = "script.py") -> bytes:
    """The body that a script of this source makes of an expression."""
    script = folder / name
    script.write_text(
        source + "\nif __name__ == '__main__':\n    import sys\n    from oncue.functions import pack_function\n"
        f"    sys.stdout.buffer.write(pack_function({expression}).body)\n"
    )
    environ = dict(os.environ, PYTHONHASHSEED=seed)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


CALL = """
import sys
sys.path.insert(0, sys.argv[1])
from oncue.protocol import payload
from oncue.functions import load_function
f = load_function(open("body", "rb").read())
args, kwargs = payload.unpack_args(open("args", "rb").read())
open("value", "wb").write(payload.pack(f(*args, **kwargs)))
"""


def there(python: str, folder: Path, body: bytes, args: bytes) -> bytes:
    """The packed result of a worker with that Python."""
    (folder / "body").write_bytes(body)
    (folder / "args").write_bytes(args)
    root = str(Path(__file__).parents[3])
    done = subprocess.run([python, "-c", CALL, root], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "value").read_bytes()
