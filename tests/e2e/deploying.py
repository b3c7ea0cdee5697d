"""Deploys rule files with file triggers, and lists the files that fired."""

from __future__ import annotations

from pathlib import Path

from oncue.protocol.api import Deployed, DeployRequest, RuleFile
from tests.e2e.running import System

WORK = """
def name_of(path):
    return path.rsplit("/", 1)[1]
"""
TRIGGER = "  - {{name: {name}, kind: file, path: {folder}, glob: {glob}}}\n"
RULE = """\
  - name: {name}-name
    on: {name}
    run: {{function: name_of, endpoint: local, args: {{path: "${{data.path}}"}}}}
"""


def registered(system: System) -> None:
    system.write("work.py", WORK)
    system.oncue("functions", "register", "work.py:name_of")


def rules(*triggers: tuple[str, Path], glob: str = '"**/*.raw"') -> str:
    heads = "".join(TRIGGER.format(name=name, folder=folder, glob=glob) for name, folder in triggers)
    return f"triggers:\n{heads}rules:\n" + "".join(RULE.format(name=name) for name, _ in triggers)


def deploy(system: System, label: str, text: str) -> Deployed:
    """Deploy by the API from this process.

    Nothing runs between the answer and the caller's next statement.
    """
    with system.client() as client:
        (done,) = client.rules.deploy(DeployRequest(files=[RuleFile(label=label, text=text)]))
    return done


def fired(system: System, name: str, folder: Path, count: int) -> list[str]:
    """Return the names of the `count` files that fired.

    A last file is written after all others and awaited, so that none is missed.
    """
    fence = folder / f"fence{count}.raw"
    fence.write_bytes(b"last")
    values: list[str] = []

    def all_there() -> bool:
        tasks = system.tasks(rule=f"{name}-name", state="succeeded")
        fences = [t["value"] for t in tasks if t["value"].startswith("fence")]
        values[:] = sorted(t["value"] for t in tasks if t["value"] not in fences)
        return fence.name in fences and len(values) >= count

    system.await_true(all_there, f"{count} tasks of {name}")
    return values


def place(system: System, name: str, files: int = 3) -> Path:
    """Make a folder that holds files before the deploy."""
    folder = system.folder / name
    (folder / "deep").mkdir(parents=True)
    for i in range(files):
        (folder / "deep" / f"old{i}.raw").write_bytes(b"old")
    return folder
