"""Ray is started with a token, and errors reach its driver."""

import os
import pickle
from pathlib import Path

from raymerge import errors
from raymerge.execution.capacity import Capacity


def test_local_ray_requires_a_token_and_writes_none(capacity: Capacity) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert not (Path(os.environ["HOME"]) / ".ray" / "auth_token").exists()


def test_driver_is_on_the_node_of_this_machine(capacity: Capacity) -> None:
    assert [node.has_driver for node in capacity.nodes] == [True]


def test_all_errors_survive_pickling() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.UserError):
            copy = pickle.loads(pickle.dumps(kind("what is wrong")))
            assert (type(copy), str(copy)) == (kind, "what is wrong"), name
