"""The reason in a job's stderr, behind which launchers write what they saw."""

from __future__ import annotations

import pytest

from oncue.endpoint.providers.last_words import last_words

WHY = "Invalid: a worker needs gpus: 1, and this node has 0"
RULE = "-" * 74


@pytest.mark.parametrize(
    "behind",
    [
        "",
        "srun: error: n1: task 0: Exited with exit code 2",
        "srun: error: n1: task 0: Exited with exit code 2\nsrun: Terminating StepId=6.0\nslurmstepd: error: *** done ***",
        f"{RULE}\nPrimary job  terminated normally, but 1 process returned\na non-zero exit code.\n{RULE}\n{RULE}\n"
        "mpirun detected that one or more processes exited with non-zero status, thus causing\nthe job to be "
        f"terminated. The first process to do so was:\n\n  Process name: [[4711,1],0]\n  Exit code:    2\n{RULE}",
        "\n" + "=" * 83 + "\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 2\n" + "=" * 83,
        "[NID 00012] 2026-11-30 12:00:00 Apid 1: initiated application termination",
    ],
)
def test_the_line_before_those_of_launchers_is_the_reason(behind: str) -> None:
    assert last_words(f"before\n{WHY}\n{behind}\n") == WHY


def test_indented_lines_belong_to_the_line_before() -> None:
    assert last_words("Invalid: why\n  change it\nsrun: error: task 0: Exited\n") == "Invalid: why; change it"
    assert last_words("Traceback:\n  File x\n    import y\nModuleNotFoundError: y\n") == "ModuleNotFoundError: y"
    assert last_words("  a\n  b\n  c\n  d\n") == "d"


def test_a_launcher_that_could_start_nothing_has_the_last_word() -> None:
    assert last_words("srun: error: Unable to create step for job 6: Invalid node count\n").startswith(
        "srun: error: Un"
    )
    assert last_words(" \n") == ""
