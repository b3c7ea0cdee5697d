"""Threads that decode a Struct for the first time at once."""

from __future__ import annotations

import subprocess
import sys

TRIES = 5
PROGRAM = """
import sys, threading
from typing import Any
import msgspec
sys.setswitchinterval(1e-6)
import oncue
from oncue import task_lifecycle
from oncue.client import http
from oncue.dispatcher.http import schemas
from oncue.functions import body
from oncue.log import base
from oncue.protocol import api, records
from oncue.triggers.file import options
from oncue.triggers.webhook import trigger

modules = (http, task_lifecycle, records, api, schemas, body, base, options, trigger)
kinds = [k for m in modules for k in vars(m).values() if isinstance(k, type) and issubclass(k, msgspec.Struct)]
assert len(kinds) > 60, len(kinds)
failed = []
barrier = threading.Barrier(4)

def decode() -> None:
    for kind in kinds:
        names = kind.__struct_encode_fields__
        data = msgspec.msgpack.encode([None] * len(names) if kind.__struct_config__.array_like else dict.fromkeys(names))
        barrier.wait()
        for _ in range(10):
            try:
                msgspec.msgpack.decode(data, type=kind)
            except msgspec.ValidationError:
                pass
            except Exception as e:
                failed.append((kind, e))

threads = [threading.Thread(target=decode) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert not failed, failed
"""


def test_first_decodes_at_once_do_not_crash_the_process() -> None:
    for _ in range(TRIES):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr)
