"""Which models hit which users: how far they agree, and how much a merge keeps of what only one of them knows."""

from collections.abc import Mapping

import torch
from torch import Tensor


def by_agreement(hits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Users grouped by who hits them: bool[U] of each of two or more models → bool[U] of each group.

    Each user is in one group: "no member", "only <model>", "several members" (of three or more), "all members".

    >>> groups = by_agreement({"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, False])})
    >>> {group: users.tolist() for group, users in groups.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'no member': [False, False, True], 'only a': [False, True, False], 'only b': [False, False, False],
     'all members': [True, False, False]}
    """
    count = torch.stack(list(hits.values())).sum(dim=0)
    groups = {"no member": count == 0} | {f"only {model}": mine & (count == 1) for model, mine in hits.items()}
    if len(hits) > 2:
        groups["several members"] = (count > 1) & (count < len(hits))
    return groups | {"all members": count == len(hits)}
