"""Keeps what a process knows from other processes of the same user.

Tasks run as the user of their agent. What is closed here: ptrace, and `/proc/<pid>` with memory,
environment and descriptors. It is not closed to root; only another account or a container closes
files to tasks.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

_PR_SET_DUMPABLE = 4
#: Variables of oncue that an agent may keep: they are no secrets.
_HARMLESS = ("ONCUE_DEBUG", "ONCUE_NODE_CORES", "ONCUE_TEST_", "ONCUE_BENCH_", "ONCUE_CHAOS_")

_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY")


def hide_from_tasks() -> None:
    """Close this process to debuggers and readers of `/proc` without privileges.

    Linux only. It also turns core dumps off.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def agent_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those of oncue.

    An agent has its own key and folder.
    """
    return {k: v for k, v in environ.items() if not k.startswith("ONCUE_") or k.startswith(_HARMLESS)}


def drop_secrets() -> None:
    """Start this program anew if its first environment has oncue's secrets.

    The first environment stays in the process's memory; removing variables does not clear it.
    """
    if any(name.startswith("ONCUE_") and any(word in name for word in _SECRET_WORDS) for name in os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], agent_environment(os.environ))
