"""Small files in the format of CIFAR-10's binary version."""

from pathlib import Path

import numpy as np
from torch_ddp_train import data


def write_cifar10(
    directory: Path, num_records: int, numbered: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes all six files, with random images whose mean depends on the label.

    Args:
        directory: Where to.
        num_records: Images in each file.
        numbered: Whether the first two pixels hold the number of the image, low byte first.

    Returns:
        File name to (uint8 [N, 3, 32, 32], int64 [N]).
    """
    rng = np.random.default_rng(0)
    written = {}
    for names in data.CIFAR_FILES.values():
        for name in names:
            labels = rng.integers(0, 10, num_records)
            noise = rng.integers(0, 30, (num_records, *data.CIFAR_SHAPE))
            pixels = (noise + labels[:, None, None, None] * 20).astype(np.uint8)
            if numbered:
                numbers = np.arange(num_records) + len(written) * num_records
                pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers % 256, numbers // 256
            rows = np.concatenate(
                [labels[:, None].astype(np.uint8), pixels.reshape(num_records, -1)], axis=1
            )
            (directory / name).write_bytes(rows.tobytes())
            written[name] = (pixels, labels)
    return written
