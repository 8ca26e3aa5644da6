"""Imports TensorFlow and Keras 3: `from tf_train.backend import keras, tf`.

While it is imported, TensorFlow writes lines about the GPUs that it does not find, whatever
`TF_CPP_MIN_LOG_LEVEL` says; they are dropped here.

`keras` is Keras 3 and never `tf.keras`, which means Keras 2 wherever `TF_USE_LEGACY_KERAS=1` is
set, as Ray Train's own TensorFlow backend does in its workers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stderr_dropped() -> Iterator[None]:
    """Nothing that is written to file descriptor 2 is seen, whoever writes it."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


os.environ["KERAS_BACKEND"] = "tensorflow"
# Without what TensorFlow says of instructions, buffers and devices that it has found.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with stderr_dropped():
    import tensorflow as tf

    tf.config.list_physical_devices()  # Looks for GPUs, once.
    import keras  # type: ignore[import-untyped]

__all__ = ["keras", "tf"]
