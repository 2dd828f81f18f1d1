"""Everything a training resumes from, as plain tensors and numbers, so that nothing needs pickling.

There is no random generator state: every draw of an epoch follows from (seed, epoch, rank), so a training resumed after
an epoch continues bit for bit as if it had never stopped.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from raymerge.errors import ArtifactError

_SECTIONS = ("encoder", "objective", "optimizer", "average", "best")


@dataclass(frozen=True)
class EpochReport:
    """The figures of an epoch, over all ranks; epochs count from 1."""

    epoch: int
    epochs: int
    steps: int
    loss: float  # mean over the epoch's steps
    terms: dict[str, float]  # the loss's unweighted summands, likewise
    ndcg: float  # validation NDCG@10 of the full ranking
    best_ndcg: float
    improved: bool
    learning_rate: float  # of the last step
    training_seconds: float
    validation_seconds: float
    tokens: int  # input items that are not padding
    targets: int  # positions whose item is guessed
    useful_share: float  # share of the computed columns that are not padding

    @property
    def tokens_per_second(self) -> float:
        """Non-padding input items per second, over all ranks, without validation."""
        return self.tokens / max(self.training_seconds, 1e-9)


@dataclass(frozen=True)
class TrainingState:
    """The state of a training after `epoch` epochs; tensors are copies on the CPU."""

    epoch: int = 0
    best_epoch: int = 0
    best_ndcg: float = -1.0
    encoder: dict[str, Tensor] = field(default_factory=dict)
    objective: dict[str, Tensor] = field(default_factory=dict)  # parameters of the objective itself, if it has any
    optimizer: dict[str, Tensor] = field(default_factory=dict)  # by "moment/parameter"
    average: dict[str, Tensor] = field(default_factory=dict)  # of the encoder's parameters, if epochs are averaged
    best: dict[str, Tensor] = field(default_factory=dict)  # parameters of the best epoch: their average, if it has one
    history: tuple[EpochReport, ...] = ()

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors under distinct names, without shared memory, as safetensors requires."""
        named = {f"{part}:{name}": t for part in _SECTIONS[:-1] for name, t in getattr(self, part).items()}
        return named | {f"best:{name}": t.clone() for name, t in self.best.items()}  # may be the encoder's

    def to_json(self) -> dict[str, Any]:
        """Everything else, lossless in JSON."""
        history = [asdict(report) for report in self.history]
        return {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_ndcg": self.best_ndcg, "history": history}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> "TrainingState":
        """Inverse of `to_tensors` and `to_json`; ArtifactError if they are not a training state."""
        sections: dict[str, dict[str, Tensor]] = {part: {} for part in _SECTIONS}
        try:
            for full_name, tensor in tensors.items():
                part, name = full_name.split(":", 1)
                sections[part][name] = tensor
            history = tuple(EpochReport(**report) for report in numbers["history"])
            epoch, best_epoch, best_ndcg = (numbers[name] for name in ("epoch", "best_epoch", "best_ndcg"))
        except (KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"not the state of a training ({error!r}): start this training from scratch") from None
        encoder, own, optimizer, average, best = (sections[part] for part in _SECTIONS)
        return cls(epoch, best_epoch, best_ndcg, encoder, own, optimizer, average, best, history)

    def averaged_with(self, encoder: nn.Module, before: int | None) -> dict[str, Tensor]:
        """The average of `before` epochs' parameters and these, on the CPU; empty for None.

        Averaging at a constant rate is stochastic weight averaging (Izmailov et al., UAI 2018).
        """
        if before is None:
            return {}
        parameters = copies(encoder.state_dict())
        return {name: self.average[name].lerp(p, 1 / (before + 1)) if before else p for name, p in parameters.items()}

    def after_epoch(
        self,
        report: EpochReport,
        encoder: nn.Module,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, Tensor],
    ) -> "TrainingState":
        """The state one epoch later, with copies of what was trained."""
        parameters = copies(encoder.state_dict())
        named = trained_parameters(encoder, objective)
        better = report.improved
        return replace(
            self,
            epoch=report.epoch,
            best_epoch=report.epoch if better else self.best_epoch,
            best_ndcg=report.ndcg if better else self.best_ndcg,
            average=average,
            best=(average or parameters) if better else self.best,
            encoder=parameters,
            objective=copies(objective.state_dict()),
            optimizer=copies({f"{m}/{n}": t for n, p in named.items() for m, t in optimizer.state[p].items()}),
            history=(*self.history, report),
        )

    def load_into(self, encoder: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore the trained parameters and the optimizer's moments; ArtifactError if they do not match."""
        named = trained_parameters(encoder, objective)
        try:
            encoder.load_state_dict(self.encoder)
            objective.load_state_dict(self.objective)
            for full_name, tensor in self.optimizer.items():
                moment, name = full_name.split("/", 1)
                device = named[name].device
                optimizer.state[named[name]][moment] = tensor.to(device, copy=True)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(f"the state is of another model or objective ({reason}): start from scratch") from None


def trained_parameters(encoder: nn.Module, objective: nn.Module) -> dict[str, nn.Parameter]:
    """The encoder's and the objective's parameters, in a fixed order under distinct names."""
    return dict(nn.ModuleDict({"encoder": encoder, "objective": objective}).named_parameters())


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
