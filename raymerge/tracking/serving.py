"""The merged model as MLflow serves it: histories of the data's own item ids in, best items and scores out.

MLflow saves this file as the model's code and runs it when the model is loaded; nothing is pickled. It needs only
what the model itself needs: the folder `model/` (safetensors, JSON, Parquet) and this package, which is saved with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.models import ModelConfig, set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import raymerge
from raymerge.data.sequences import read_items
from raymerge.files import storage
from raymerge.recommendation import recommend

DEFAULTS: dict[str, Any] = {"top_k": 10, "exclude_seen": True}
"""Parameters of `predict`: the number of items per history, and whether those already in it are left out."""


class Recommender(PythonModel):
    """Loads `model/` and recommends; its subclasses declare the type of the item ids, so that MLflow checks them."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model and its catalogue from the artifact folder."""
        folder = context.artifacts["model"]
        self.module = raymerge.load_model(folder)
        self.items = read_items(storage.join(folder, "items.parquet"))

    def _recommend(
        self, histories: Sequence[Sequence[int | str]], params: Mapping[str, Any] | None
    ) -> list[dict[str, list[Any]]]:
        return recommend(self.module, self.items, histories, **(DEFAULTS | dict(params or {})))


class IntegerItems(Recommender):
    """For catalogues whose own ids are integers."""

    def predict(
        self, context: PythonModelContext, model_input: list[list[int]], params: dict[str, Any] | None = None
    ) -> list[dict[str, list[Any]]]:
        """A list of histories, or a data frame with one column of them → items and scores for each."""
        return self._recommend(model_input, params)


class StringItems(Recommender):
    """For catalogues whose own ids are strings."""

    def predict(
        self, context: PythonModelContext, model_input: list[list[str]], params: dict[str, Any] | None = None
    ) -> list[dict[str, list[Any]]]:
        """A list of histories, or a data frame with one column of them → items and scores for each."""
        return self._recommend(model_input, params)


if not __name__.startswith("raymerge."):  # run by MLflow as the code of a saved model, not imported
    set_model({"integer": IntegerItems, "string": StringItems}[ModelConfig().get("item_ids")]())
