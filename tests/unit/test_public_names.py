"""`oncue` has the public names, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import oncue
from oncue import errors


def test_dir_lists_the_public_names_and_each_can_be_imported() -> None:
    found = {name: getattr(oncue, name) for name in dir(oncue)}

    assert {"Client", "Task", "TaskFailed", "TaskError", "OncueExecutor", "as_completed"} <= found.keys()
    assert found["TaskFailed"] is errors.TaskFailed


def test_every_error_of_a_task_is_public() -> None:
    kinds = {errors.TaskError, *errors.TaskError.__subclasses__()}

    assert {kind.__name__ for kind in kinds} <= set(dir(oncue))


def test_every_public_name_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")

    assert [name for name in dir(oncue) if name != "__version__" and f"`{name}`" not in page] == []


def test_a_closed_client_raises_what_an_executor_raises_after_its_shutdown() -> None:
    assert issubclass(oncue.ClientClosed, RuntimeError)
    assert issubclass(oncue.ClientClosed, oncue.Invalid)


def test_importing_oncue_imports_no_client() -> None:
    code = "import oncue, sys; dir(oncue); raise SystemExit('oncue.client' in sys.modules or 'oncue.errors' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
