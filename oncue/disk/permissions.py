"""Errors of missing permissions, with the account that lacks them."""

from __future__ import annotations

import errno
import os
import pwd
from functools import cache

READ_FOLDER = "read and enter this folder (r-x)"
ENTER_FOLDER = "enter the folder of this file (--x)"


@cache
def account() -> str:
    """Return the name of the account under which this process runs, or its number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"with the uid {os.geteuid()}"


def explain(error: OSError, needs: str) -> str:
    """Return the system's reason. `needs`: the missing permission, in words."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return reason
    return f"{reason}: the account {account()} of this server may not {needs}; permit it with chmod, chgrp or setfacl"
