"""Sums and gathers over the ranks of a training; in a single process they change nothing."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from raymerge.models.losses import gather_rows
from raymerge.training.same_target import SameTargetIndex, merge_indices


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks: (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Elementwise sum over ranks, in place."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[nn.Parameter], figures: Tensor) -> None:
    """Sum gradients (all parameters have one) and figures of the same dtype over ranks, in place, in one message."""
    if world()[1] == 1:
        return
    tensors = [*(cast(Tensor, parameter.grad) for parameter in parameters), figures]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def start_alike(*modules: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to all ranks."""
    if world()[1] > 1:
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)


def index_of_all_ranks(own: SameTargetIndex, device: torch.device) -> SameTargetIndex:
    """The index over all ranks' partitions, the same on each rank; on `device`, which the messages need too."""
    columns = (own.targets, own.priorities, own.histories)
    targets, priorities, histories = (gather_rows(column.to(device))[0] for column in columns)
    everything = SameTargetIndex(targets, priorities, histories, own.candidates, own.seed)
    return merge_indices([everything]) if world()[1] > 1 else everything
