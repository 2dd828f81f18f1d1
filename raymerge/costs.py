"""What a stage costs: the rates and sizes that were measured, and the formulas that scale them.

Shapes: d dimensions, L columns, V items, P parameters of a model. Work is counted in multiply-adds.
"""

from dataclasses import dataclass

from raymerge.models.encoder import EncoderConfig


@dataclass(frozen=True)
class Rates:
    """What was measured, each a second and core; start-ups in seconds of one core, of which a machine has two."""

    source: str = "one machine with 2 CPU cores (AMD EPYC, torch 2.13)"
    training: float = 7.6e9  # multiply-adds of a forward pass, its backward included: 46,000 tokens/s, L 50, V 3416
    fisher: float = 1.7e10  # multiply-adds of the cotangents of all probes: 100 users/s, L 50, V 3416
    ranking: float = 8.2e9  # multiply-adds of a forward pass: 2,800 users/s, L 50, V 3416
    prepare: float = 650_000.0  # rows of a log in Parquet, on one core whatever there is: 20 million in 30 s
    start_ray_s: float = 8.0
    start_training_s: float = 26.0  # imports of a trainer's processes, on one core
    report_s: float = 1.0  # of each epoch: Ray Train takes a checkpoint when it looks, every 2 s
    start_training_waits_s: float = 6.0
    start_pool_s: float = 10.0
    trial_s: float = 0.05  # of a merge, beside its ranking
    bootstrap: float = 3.2e7  # users times replicates, on one core, with 200 columns
    close_s: float = 10.0  # report, plots, registration
    gpu_cores: float = 2.0  # that a GPU counts for, for want of a measurement


RATES = Rates()
GIB = 2**30
INTERACTION_BYTES, USER_BYTES = 4.0, 64.0  # of histories in memory: an item's number; a user's id, key and offset
PADDED_BYTES = 8.0  # of an item of a history that is padded to a model's length
PREPARE_ROW_BYTES, PREPARE_ITEM_BYTES = 100, 200  # that prepare holds of a partition's rows, and of the catalogue
PROCESS_BYTES = 600 * 2**20  # of a worker that has imported torch and Ray; 560 to 750 MiB were seen
NODE_BYTES = 1 * GIB  # of Ray's own processes on a node
TRAINING_COPIES = 13  # of a model, the most that a training holds (see raymerge.training.loop)
AVERAGE_COPIES = 3  # and more where epochs are averaged
SCORE_PASSES = 4  # over a user's logits in any Fisher estimator: twice for the softmax, its mean, the output weights
ATTENTION = 6  # float32 matrices L × L that training keeps for each head and block
ACTIVATIONS = 24  # float32 of width d that training keeps for each position and block


def layers(encoder: EncoderConfig) -> float:
    """Multiply-adds of all matrix products with weights, for one position."""
    return encoder.blocks * (4.0 * encoder.dim**2 + 2.0 * encoder.dim * encoder.feed_forward)


def encoding(encoder: EncoderConfig, length: float) -> float:
    """Multiply-adds to encode one of `length` positions: the products with weights, and attention to all others."""
    return layers(encoder) + encoder.blocks * 2.0 * length * encoder.dim


def parameters(encoder: EncoderConfig, items: int) -> int:
    """About how many parameters a model has, embeddings of items and positions included."""
    output = items * encoder.output_bias + encoder.dim * encoder.repeat_direction
    return round((items + 2 + encoder.max_length) * encoder.dim + output + layers(encoder))
