"""Write a simulated scan: `python make_scan.py incoming/scan_001.npy`."""

import os
import sys

import numpy as np


def make_scan(path, frames=64, size=128, flats=4):
    random = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size - 0.5
    stack = np.empty((flats + frames, size, size), dtype=np.uint16)
    for i in range(flats + frames):
        angle = np.pi * i / frames
        ball = np.sqrt(np.maximum(0.04 - (x - 0.2 * np.cos(angle)) ** 2 - y**2, 0)) if i >= flats else 0
        stack[i] = random.poisson(10_000 * np.exp(-5 * np.asarray(ball)) * np.ones((size, size)))
    partial = f"{path}.part"
    with open(partial, "wb") as out:
        np.save(out, stack)
    os.replace(partial, path)


if __name__ == "__main__":
    make_scan(sys.argv[1])
