"""Secret key of a block on its way from the job's script into the node's process.

It imports little: the process starts twice, and its task waits for both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from oncue.processes.secrecy import agent_environment

SECRET = "ONCUE_NODE_SECRET"  # variable of a job's script: the secret key of its block
BEGAN = "ONCUE_JOB_BEGAN"  # another one: unix time at which the script began
KEY_FD = "--key-fd"  # argument of the node's process: the pipe in which the key waits
JOB_BEGAN = "--job-began"


def hide_secret(environ: Mapping[str, str]) -> None:
    """Start this program anew, with the secret in a pipe instead of its environment."""
    secret = environ.get(SECRET)
    if not secret:
        return
    read, write = os.pipe()
    os.write(write, secret.encode())
    os.close(write)
    os.set_inheritable(read, True)
    sys.stdout.flush()
    words = [*sys.orig_argv[1:], KEY_FD, str(read), f"{JOB_BEGAN}={environ.get(BEGAN) or 0}"]
    os.execve(sys.executable, [sys.executable, *words], agent_environment(environ))
