"""Shift the clock of each Python process that has this folder in PYTHONPATH: a `dedupe` forgets after 30 days at most."""

import os
import time

SHIFT_NS = int(os.environ["ONCUE_TEST_CLOCK_SHIFT_S"]) * 1_000_000_000
_real_ns = time.time_ns

time.time_ns = lambda: _real_ns() + SHIFT_NS
time.time = lambda: time.time_ns() / 1e9
