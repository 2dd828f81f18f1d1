"""What a stage costs: measured rates and sizes, and the formulas that scale them.

Shapes: d dimensions, L columns, V items, P parameters of a model. Work is counted in multiply-adds.
"""

from dataclasses import dataclass

from raymerge.models.encoder import EncoderConfig


@dataclass(frozen=True)
class Rates:
    """Measured rates per second and core; start-up times in seconds, on a machine with two cores."""

    source: str = "one machine with 2 CPU cores (AMD EPYC, torch 2.13)"
    training: float = 7.6e9  # multiply-adds of a forward pass, with its backward pass: 46,000 tokens/s, L 50, V 3416
    fisher: float = 1.7e10  # multiply-adds of the cotangents of all probes: 100 users/s, L 50, V 3416
    ranking: float = 8.2e9  # multiply-adds of a forward pass: 2,800 users/s, L 50, V 3416
    prepare: float = 650_000.0  # rows of a log in Parquet, always on one core: 20 million in 30 s
    start_ray_s: float = 8.0
    start_training_s: float = 26.0  # imports in the processes of a trainer, on one core
    report_s: float = 1.0  # per epoch: Ray Train polls for checkpoints every 2 s
    start_training_waits_s: float = 6.0
    start_pool_s: float = 10.0
    trial_s: float = 0.05  # of a merge, without its ranking
    bootstrap: float = 3.2e7  # users times replicates per second, on one core, with 200 columns
    close_s: float = 10.0  # report, plots, registration
    gpu_cores: float = 2.0  # that one GPU counts as; not measured


RATES = Rates()
GIB = 2**30
INTERACTION_BYTES, USER_BYTES = 4.0, 64.0  # of histories in memory: per interaction, and per user (id, key, offset)
PADDED_BYTES = 8.0  # per item of a history padded to a model's length
PREPARE_ROW_BYTES, PREPARE_ITEM_BYTES = 100, 200  # that prepare holds per row of a partition, per item of the catalogue
PROCESS_BYTES = 600 * 2**20  # of a worker that has imported torch and Ray; measured 560 to 750 MiB
NODE_BYTES = 1 * GIB  # of Ray's own processes on a node
TRAINING_COPIES = 13  # of a model, the most that training holds (see raymerge.training.loop)
AVERAGE_COPIES = 3  # in addition, if epochs are averaged
SCORE_PASSES = 4  # over a user's logits in any Fisher estimator: two for the softmax, its mean, the output weights
ATTENTION = 6  # float32 matrices L × L that training keeps per head and block
ACTIVATIONS = 24  # float32 vectors of width d that training keeps per position and block


def layers(encoder: EncoderConfig) -> float:
    """Multiply-adds of all matrix products with weights, for one position."""
    return encoder.blocks * (4.0 * encoder.dim**2 + 2.0 * encoder.dim * encoder.feed_forward)


def encoding(encoder: EncoderConfig, length: float) -> float:
    """Multiply-adds to encode one of `length` positions: products with weights, and attention to all positions."""
    return layers(encoder) + encoder.blocks * 2.0 * length * encoder.dim


def parameters(encoder: EncoderConfig, items: int) -> int:
    """Approximate number of parameters of a model, with item and position embeddings."""
    output = items * encoder.output_bias + encoder.dim * encoder.repeat_direction
    return round((items + 2 + encoder.max_length) * encoder.dim + output + layers(encoder))
