"""A log book in a file: one line a run, once however often it is called with the same key."""

import fcntl
import os


def add(run, text, key, book="~/logbook.txt"):
    line = f"run {run}: {text} [{key}]\n"
    with open(os.path.expanduser(book), "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = any(old.rstrip().endswith(f"[{key}]") for old in file)
        if not known:
            file.write(line)
    return {"line": line, "written": not known}
