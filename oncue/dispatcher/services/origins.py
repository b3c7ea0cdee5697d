"""Where rule files came from: a label is not another file's unasked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from oncue.errors import Conflict
from oncue.protocol import api as r
from oncue.protocol.records import Deployment, origin


def same_origin(old: Deployment, file: r.RuleFile) -> bool:
    """Deployments of before the hosts were told are compared by their paths."""
    return old.path == file.path and (not old.host or not file.host or old.host == file.host)


def check_origins(planned: Iterable[r.Deployed], files: Mapping[str, r.RuleFile]) -> None:
    """Raises Conflict for a label that is another file's."""
    for d in planned:
        if d.replaces:
            file = files[d.label]
            raise Conflict(
                f"the rule file {d.label!r} that is in force came from {d.replaces}, this one is from"
                f" {origin(file.host, file.path)}",
                remedy="deploy it beside that one under another name: --label NAME; or, to put it in its place: --replace",
                label=d.label,
                replaces=d.replaces,
            )
