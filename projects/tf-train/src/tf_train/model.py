"""The two networks. Both take uint8 images and return class logits, float32.

The bytes are scaled inside the model, so that an exported model takes what a client has. There is
no batch normalization: its statistics would differ between workers.
"""

from collections.abc import Sequence

from tf_train.backend import keras
from tf_train.config import ModelConfig

POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16"}


def build_model(
    config: ModelConfig,
    shape: Sequence[int],
    num_classes: int,
    mean: float,
    std: float,
    precision: str,
    seed: int,
) -> "keras.Model":
    """The network that `config` names, with fresh weights that depend on `seed` alone.

    Args:
        config: Name and width.
        shape: Height, width and channels of an image.
        num_classes: Number of logits.
        mean: Mean of the bytes of the training images.
        std: Their standard deviation.
        precision: `fp32` or `bf16`.
        seed: Of the weights.
    """
    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_dtype_policy(POLICIES[precision])
    layers = keras.layers
    images = keras.Input(tuple(shape), dtype="uint8", name="image")
    x = layers.Rescaling(1 / std, -mean / std, name="normalize")(images)
    width = config.width
    if config.name == "cnn":
        x = _convolution(x, width, "1")
        x = _convolution(x, 2 * width, "2")
        x = layers.MaxPooling2D(padding="same", name="pool")(x)
        x = _convolution(x, 2 * width, "3")
        x = layers.Flatten(name="flatten")(x)
    else:
        x = layers.Flatten(name="flatten")(x)
        for number in "12":
            x = layers.Dense(width, activation="relu", name=f"dense_{number}")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name=config.name)


def classifier(model: "keras.Model") -> "keras.Model":
    """The same network with probabilities instead of logits; shares its layers and weights."""
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(model.output)
    return keras.Model(model.input, probabilities, name=model.name)


def _convolution(x: "keras.KerasTensor", channels: int, number: str) -> "keras.KerasTensor":
    # Names of their own, so that two models of one architecture have the same.
    layers = keras.layers
    x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"conv_{number}")(x)
    x = layers.GroupNormalization(8, name=f"norm_{number}")(x)
    return layers.ReLU(name=f"relu_{number}")(x)
