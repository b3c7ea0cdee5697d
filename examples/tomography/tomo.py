"""Normalise tomography scans. This file does not need oncue.

Run it alone with `python -c "import tomo; tomo.normalise('scan.npy', 'p.pgm')"`.
"""

import numpy as np


def normalise(path, preview, flats=4):
    """Divide the projections by the mean of the first `flats` frames and write a preview."""
    stack = np.load(path, mmap_mode="r")
    white = stack[:flats].mean(axis=0).clip(min=1)
    middle = -np.log((stack[flats + (len(stack) - flats) // 2] / white).clip(min=1e-3))
    write_pgm(preview, middle)
    print(f"{path}: {len(stack) - flats} projections of {stack.shape[1]} x {stack.shape[2]}")
    return {"projections": len(stack) - flats, "absorption": float(middle.mean()), "preview": preview}


def write_pgm(path, image):
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    with open(path, "wb") as out:
        out.write(b"P5 %d %d 255\n" % (image.shape[1], image.shape[0]) + grey.tobytes())
