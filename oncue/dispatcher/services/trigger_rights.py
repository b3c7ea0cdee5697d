"""Rights of triggers: folders, secrets and variables that they may use.

Rule files that an admin deployed may use all. Those of others may watch folders under
`trigger_roots`, and use the secrets that were given to their owner.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from oncue.dispatcher.auth.identity import Caller
from oncue.errors import Forbidden, NotFound, NotReady
from oncue.rules.parsing.rule_file import RuleSet
from oncue.triggers.base import Rights
from oncue.triggers.catalog import trigger_class

ANSWER_S = 5.0  # of a file system, in a deploy
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def rights_of(owner: str, by_admin: bool, roots: Sequence[str]) -> Rights:
    """Return the rights of the triggers in a rule file."""
    return Rights() if by_admin else Rights(owner=owner, folders=tuple(str(Path(r).expanduser()) for r in roots))


async def check_triggers(caller: Caller, rules: RuleSet, path: str, roots: Sequence[str]) -> None:
    """Raise Forbidden, naming the trigger, if it wants what its deployer may not use.

    `path`: of the rule file. Raises NotReady if a file system does not answer.
    """
    rights = rights_of(caller.subject, caller.is_admin, roots)
    if not rights.restricted or not rules.triggers:
        return
    try:
        await asyncio.wait_for(asyncio.to_thread(_check, rules, path, rights), ANSWER_S)
    except TimeoutError:
        raise NotReady(
            "the file system of a trigger's folder does not answer", remedy="try again when it does"
        ) from None


def _check(rules: RuleSet, path: str, rights: Rights) -> None:
    for spec in rules.triggers:
        cls = trigger_class(spec.kind)
        options = cls.resolve_paths(spec.options, Path(path).parent) if path else spec.options
        try:
            cls.check_rights(options, rights)
        except Forbidden as e:
            raise Forbidden(f"trigger {spec.name!r}: {e.message}", remedy=e.remedy) from None


class SecretStore:
    """Secrets that rule files name as ${secret:NAME}.

    secrets/NAME          for rule files that an admin deployed; else ONCUE_SECRET_NAME
    secrets/OWNER/NAME    for rule files of this owner
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, owner: str, rights: Rights) -> str:
        """Return the secret. Raises NotFound, whether it is missing or another's."""
        places = [self.folder / quote(owner, safe="@+") / name] if owner.strip(".") else []
        if not rights.restricted:
            places.append(self.folder / name)
        if _NAME.fullmatch(name):
            for path in places:
                if path.is_file():
                    return path.read_text().strip()
        variable = "ONCUE_SECRET_" + name.upper().replace("-", "_").replace(".", "_")
        if not rights.restricted and variable in os.environ:
            return os.environ[variable]
        path = places[-1] if places else self.folder
        if rights.restricted:
            raise NotFound(
                f"{owner} has no secret {name!r}",
                remedy=f"an admin gives it: write it to {path} (mode 600) on the server",
            )
        raise NotFound(
            f"there is no secret {name!r}", remedy=f"write it to {path} (mode 600), or set {variable} for the server"
        )
