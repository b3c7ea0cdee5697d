"""Environment of the workers: the agent's, without what looks like a secret.

Functions read it, so it has nothing that only the agent needs. A secret that functions need is
named in `pass_env` of agent.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

#: Names of variables that hold secrets, or lead to them.
_SECRET_NAME = re.compile(
    r"(?i)(^|_)(\w*TOKEN|\w*SECRETS?|\w*PASSWORDS?|PASSWD|PASSPHRASE|PASS|PWD_?FILE|\w*CREDENTIALS?(_DIRECTORY)?"
    r"|(API|ACCESS|PRIVATE|SECRET|ACCOUNT|ENCRYPTION|SIGNING)_?KEYS?(_ID)?|APIKEY|DSN|JWT|AUTH(_CONFIG)?|COOKIES?)($|_(FILE|PATH|JSON)$)"
)
_OURS = "ONCUE_"
#: Doors to what the user's session, or the service manager, has opened for the agent.
_DOORS = (
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_PROXY = re.compile(r"(?i)(http|https|ftp|all|no)_proxy")


def worker_environment(environ: Mapping[str, str], passed: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables that workers get.

    `passed`: globs of names that workers get although they look like secrets; never oncue's own.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OURS)
        and (not is_secret(name, value) or any(fnmatchcase(name, glob) for glob in passed))
    }


def is_secret(name: str, value: str) -> bool:
    """Return True if the variable looks like one that only the agent should have."""
    if name in _DOORS or _SECRET_NAME.search(name):
        return True
    return bool(_URL_WITH_PASSWORD.search(value)) and not _PROXY.fullmatch(name)
