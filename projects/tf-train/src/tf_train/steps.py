"""Optimizer steps and evaluations under a tf.distribute strategy: nothing of Ray.

Keras's own `model.fit` fails under MultiWorkerMirroredStrategy (see the README). Here the strategy
keeps the variables equal and adds up gradients, and this is the whole step:

1. In `strategy.run`, the gradient of the *sum* of the losses of this worker's images.
2. One all-reduce of all gradients together with the sums of losses, hits and images. An all-reduce
   for each variable would cost as many round trips.
3. Outside `strategy.run`, division by the number of images of all workers, clipping, and the
   optimizer. Inside it, Keras's optimizers clip before they add up, which is another result for
   each number of workers, and add up once more.

Source: https://www.tensorflow.org/tutorials/distribute/custom_training
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tf_train.backend import keras, tf
from tf_train.config import TrainConfig
from tf_train.data import Split

EVAL_BATCH = 1024


def learning_rate(config: TrainConfig, progress_epochs: float, world_size: int) -> float:
    """Linear warm-up, then cosine decay to 0 (https://arxiv.org/abs/1608.03983).

    Args:
        config: Peak rate, its scaling, epochs and warm-up.
        progress_epochs: Epochs done, with the fraction of the current one. In [0, epochs].
        world_size: Number of workers; matters for `lr_scaling`.
    """
    factors = {"none": 1.0, "linear": world_size, "sqrt": math.sqrt(world_size)}
    peak = config.lr * factors[config.lr_scaling]
    if progress_epochs < config.warmup_epochs:
        return peak * progress_epochs / config.warmup_epochs
    decay_epochs = max(config.epochs - config.warmup_epochs, 1e-9)
    done = min((progress_epochs - config.warmup_epochs) / decay_epochs, 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


class Steps:
    """The compiled functions of one worker. Every worker has to call the same ones in turn.

    All of them return sums over all workers, float32 [3]: losses, correct predictions, images.
    """

    def __init__(
        self,
        strategy: "tf.distribute.Strategy",
        model: "keras.Model",
        optimizer: "keras.optimizers.Optimizer",
        clip_norm: float | None,
        image_shape: Sequence[int],
        split: Split | None,
    ):
        """Compiles nothing yet: the first call of each function does.

        Args:
            strategy: Under which model and optimizer were made.
            model: Gives logits.
            optimizer: Built for the model's trainable variables.
            clip_norm: Largest L2 norm of a gradient; None: not clipped.
            image_shape: Height, width and channels.
            split: What `train_indices` takes from; None: it is not called.
        """
        self.strategy = strategy
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        if split is not None:
            self._images, self._labels = tf.constant(split.images), tf.constant(split.labels)
        shape = (None, *image_shape)
        batch = (
            tf.TensorSpec(shape, tf.uint8),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.float32),
        )
        self.train_indices = tf.function(
            self._train_indices,
            input_signature=[
                tf.TensorSpec([None, None], tf.int64),
                tf.TensorSpec([None, None]),
                tf.TensorSpec([None]),
            ],
        )
        self.train_batch = tf.function(
            self._train_batch, input_signature=[*batch, tf.TensorSpec([])]
        )
        self._evaluate_batch = tf.function(self._local_sums, input_signature=batch)
        self.total = tf.function(self._total, input_signature=[tf.TensorSpec([None])])

    def _train_indices(
        self, indices: "tf.Tensor", weights: "tf.Tensor", rates: "tf.Tensor"
    ) -> "tf.Tensor":
        """Several steps on images in memory, without a return to Python.

        Args:
            indices: This worker's images; int64 [steps, batch].
            weights: 1, or 0 for an image that does not count; float32 [steps, batch].
            rates: The learning rate of each step; float32 [steps].
        """
        sums = tf.zeros(3)
        for step in tf.range(tf.shape(indices)[0]):
            taken = indices[step]
            images, labels = tf.gather(self._images, taken), tf.gather(self._labels, taken)
            sums += self._train_batch(images, labels, weights[step], rates[step])
        return sums

    def _train_batch(
        self, images: "tf.Tensor", labels: "tf.Tensor", weights: "tf.Tensor", rate: "tf.Tensor"
    ) -> "tf.Tensor":
        """One step.

        Args:
            images: uint8 [B, H, W, C].
            labels: int64 [B].
            weights: float32 [B]; 1, or 0 for a row that does not count.
            rate: The learning rate.
        """
        variables = self.model.trainable_variables
        packed = self.strategy.run(self._packed_gradients, args=(images, labels, weights))
        *flat, sums = tf.split(packed, [math.prod(v.shape) for v in variables] + [3])
        num_images = tf.maximum(sums[2], 1.0)
        gradients = [
            tf.reshape(gradient, variable.shape) / num_images
            for gradient, variable in zip(flat, variables, strict=True)
        ]
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        self.optimizer.learning_rate.assign(rate)
        self.optimizer.apply(gradients, variables)
        return sums

    def _packed_gradients(
        self, images: "tf.Tensor", labels: "tf.Tensor", weights: "tf.Tensor"
    ) -> "tf.Tensor":
        """All gradients and the three sums in one vector, added up over the workers."""
        variables = [v.value for v in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            sums = self._local_sums(images, labels, weights, training=True)
            loss = sums[0]
        flat = [tf.reshape(gradient, [-1]) for gradient in tape.gradient(loss, variables)]
        replica = tf.distribute.get_replica_context()
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat([*flat, sums], 0))

    def _local_sums(
        self,
        images: "tf.Tensor",
        labels: "tf.Tensor",
        weights: "tf.Tensor",
        training: bool = False,
    ) -> "tf.Tensor":
        logits = self.model(images, training=training)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        hits = tf.cast(tf.argmax(logits, 1) == labels, tf.float32)
        return tf.stack([tf.reduce_sum(x * weights) for x in (losses, hits, tf.ones_like(hits))])

    def _total(self, local: "tf.Tensor") -> "tf.Tensor":
        """The sum of what each worker passes; float32 [N]."""

        def reduce(value: "tf.Tensor") -> "tf.Tensor":
            replica = tf.distribute.get_replica_context()
            # Of a tensor that is made here: of one that comes from outside it knows no device.
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return self.strategy.run(reduce, args=(local,))

    def evaluate(
        self, split: Split, rank: int, world_size: int, each_batch: Callable[[], None] | None = None
    ) -> np.ndarray:
        """Sums over all images of a split; every image belongs to exactly one worker.

        Args:
            split: What to evaluate on.
            rank: This worker takes the images `rank`, `rank + world_size`, ...
            world_size: Number of workers.
            each_batch: Called after each batch.
        """
        images, labels = split.images[rank::world_size], split.labels[rank::world_size]
        local = np.zeros(3, np.float32)
        for start in range(0, len(labels), EVAL_BATCH):
            part = slice(start, start + EVAL_BATCH)
            weights = np.ones(len(labels[part]), np.float32)
            local += self._evaluate_batch(images[part], labels[part], weights).numpy()
            if each_batch is not None:
                each_batch()
        total: np.ndarray = self.total(local).numpy()
        return total
