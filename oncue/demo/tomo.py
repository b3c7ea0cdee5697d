"""Function of the demo, as a scientist would write it, without oncue."""

from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def reconstruct(path, out):
    """Reconstruct one slice by filtered back projection.

    Writes a picture and returns its statistics.
    """
    with h5py.File(path) as file:
        counts = file["exchange/data"][:].astype(float)
        theta = np.deg2rad(file["exchange/theta"][:])
        white = file["exchange/white"][()]
        per_unit = file["exchange/attenuation_per_unit"][()]
        number, z = int(file["slice"][()]), float(file["z"][()])
    sinogram = -np.log(np.maximum(counts, 1) / white) / per_unit
    image = back_project(ramp_filter(sinogram), theta)
    picture = Path(out) / f"slice_{number:02d}.png"
    Image.fromarray(to_grey(image)).save(picture)
    inside = image[
        image.shape[0] // 2 - 20 : image.shape[0] // 2 + 20, image.shape[1] // 2 - 20 : image.shape[1] // 2 + 20
    ]
    print(f"slice {number} at z = {z:+.2f}: {counts.shape[0]} projections of {counts.shape[1]} pixels")
    return {
        "slice": number,
        "z": z,
        "mean": float(inside.mean()),
        "noise": float(inside.std()),
        "picture": str(picture),
    }


def ramp_filter(sinogram):
    """Ramp with a Hann window, against noise."""
    pixels = sinogram.shape[1]
    size = 2 ** int(np.ceil(np.log2(2 * pixels)))
    frequency = np.fft.rfftfreq(size)
    response = 2 * frequency * (0.5 + 0.5 * np.cos(2 * np.pi * frequency))
    return np.fft.irfft(np.fft.rfft(sinogram, size) * response)[:, :pixels]


def back_project(filtered, theta):
    pixels = filtered.shape[1]
    axis = np.arange(pixels) - (pixels - 1) / 2
    x, y = np.meshgrid(axis, -axis)
    image = np.zeros((pixels, pixels))
    for row, angle in zip(filtered, theta):
        image += np.interp(x * np.cos(angle) + y * np.sin(angle), axis, row, left=0, right=0)
    return image * np.pi / (2 * len(theta)) * pixels / 2


def to_grey(image, low=0.0, high=0.4):
    return (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
