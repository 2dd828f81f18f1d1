"""Training with RecTools, in turns: train_rectools.py LOG bert4rec|sasrec BATCH THREADS, in its own environment."""

import sys

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from turns import Turns

SHAPE = {"n_blocks": 2, "n_heads": 2, "n_factors": 64, "session_max_len": 50, "dropout_rate": 0.2, "loss": "softmax"}


class EachBatch(Callback):
    """Reports what each batch trained."""

    def __init__(self, turns):
        self.turns = turns

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        x, y = batch["x"], batch["y"]
        self.turns.done(tokens=int((x != 0).sum()), targets=int((y != 0).sum()), columns=x.numel())


def training_part(log):
    """All but the last two items of each user, with times that keep their order."""
    table = pd.DataFrame(np.load(log), columns=["user_id", "item_id", "place"])
    left = table.groupby("user_id")["place"].transform("max") - table["place"]
    table = table[left >= 2]
    table["datetime"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(table.pop("place"), unit="s")
    table["weight"] = 1
    return Dataset.construct(table)


def main(log, name, batch_size, threads):
    turns = Turns()
    torch.set_num_threads(threads)

    def trainer():  # like its own default, but with a callback and without an end
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return Trainer(
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            enable_checkpointing=False,
            callbacks=[EachBatch(turns)],
            **quiet,
        )

    kind, settings = (BERT4RecModel, {"mask_prob": 0.2}) if name == "bert4rec" else (SASRecModel, {})
    kind(batch_size=batch_size, lr=1e-3, get_trainer_func=trainer, **SHAPE, **settings).fit(training_part(log))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
