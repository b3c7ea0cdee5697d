"""Simulated detector: writes the sinogram of each slice of a head phantom.

Each slice has its own HDF5 file, which is written slowly, projection by projection. Every second
file is written under its final name and is complete when it is closed; the others are written under
a temporary name and are complete when they are renamed.

    python -m oncue.demo.detector FOLDER SLICES

The phantom is the 3-D Shepp–Logan head of A. C. Kak and M. Slaney, "Principles of Computerized
Tomographic Imaging" (1988), table 3.1, with the contrast of P. Toft (1996). Its line integrals are
exact (chords of ellipses); counts follow Poisson's law for 20,000 photons a pixel in the open beam.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
PIXELS, ANGLES = 192, 240
PHOTONS = 20_000.0
# Attenuation over one unit of length at density 1: some photons pass the skull.
PER_UNIT = 2.0
# density, half axes a b c, centre x y z, angle in degrees (about z)
ELLIPSOIDS = (
    (1.0, 0.6900, 0.9200, 0.810, 0.00, 0.0000, 0.00, 0.0),
    (-0.8, 0.6624, 0.8740, 0.780, 0.00, -0.0184, 0.00, 0.0),
    (-0.2, 0.1100, 0.3100, 0.220, 0.22, 0.0000, 0.00, -18.0),
    (-0.2, 0.1600, 0.4100, 0.280, -0.22, 0.0000, 0.00, 18.0),
    (0.1, 0.2100, 0.2500, 0.410, 0.00, 0.3500, -0.15, 0.0),
    (0.1, 0.0460, 0.0460, 0.050, 0.00, 0.1000, 0.25, 0.0),
    (0.1, 0.0460, 0.0460, 0.050, 0.00, -0.1000, 0.25, 0.0),
    (0.1, 0.0460, 0.0230, 0.050, -0.08, -0.6050, 0.00, 0.0),
    (0.1, 0.0230, 0.0230, 0.020, 0.00, -0.6060, 0.00, 0.0),
    (0.1, 0.0230, 0.0460, 0.020, 0.06, -0.6050, 0.00, 0.0),
)


def line_integrals(z: float, angles: Array, pixels: int = PIXELS) -> Array:
    """Return the exact projections of the slice at height z.

    Angles are in radians, lengths in units of the phantom's half width. The result has the shape
    (angles, pixels).
    """
    s = (np.arange(pixels) - (pixels - 1) / 2) * 2 / pixels
    total = np.zeros((len(angles), pixels))
    for density, a, b, c, x, y, z0, degrees in ELLIPSOIDS:
        shrink = 1 - ((z - z0) / c) ** 2
        if shrink <= 0:
            continue
        a, b = a * np.sqrt(shrink), b * np.sqrt(shrink)
        turned = angles - np.deg2rad(degrees)
        width2 = (a * np.cos(turned)) ** 2 + (b * np.sin(turned)) ** 2
        offset = s[None, :] - (x * np.cos(angles) + y * np.sin(angles))[:, None]
        chord = np.sqrt(np.clip(width2[:, None] - offset**2, 0, None))
        total += density * 2 * a * b * chord / width2[:, None]
    return total


def write_slice(path: Path, number: int, z: float, *, renamed: bool, seed: int, pause_s: float = 0.008) -> None:
    """Write one file, a few projections at a time."""
    angles = np.linspace(0, np.pi, ANGLES, endpoint=False)
    counts = np.random.default_rng(seed).poisson(PHOTONS * np.exp(-PER_UNIT * line_integrals(z, angles)))
    target = path.with_name(path.name + ".part") if renamed else path
    with h5py.File(target, "w") as file:
        data = file.create_dataset("exchange/data", (ANGLES, PIXELS), "u2", chunks=(8, PIXELS))
        file["exchange/theta"] = np.rad2deg(angles)
        file["exchange/white"] = PHOTONS
        file["exchange/attenuation_per_unit"] = PER_UNIT
        file["slice"], file["z"] = number, z
        for row in range(0, ANGLES, 8):
            data[row : row + 8] = counts[row : row + 8]
            file.flush()
            time.sleep(pause_s)
    if renamed:
        target.rename(path)


def main() -> None:
    folder, slices = Path(sys.argv[1]), int(sys.argv[2])
    for i, z in enumerate(np.linspace(-0.55, 0.45, slices)):
        write_slice(folder / f"scan_{i + 1:02d}.h5", i + 1, float(z), renamed=bool(i % 2), seed=i)


if __name__ == "__main__":
    main()
