"""Training with RecBole, in turns: train_recbole.py LOG BERT4Rec BATCH THREADS, in its own environment."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from turns import Turns

SETTINGS = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": 50,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "train_neg_sample_args": None,
    "loss_type": "CE",
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "hidden_dropout_prob": 0.2,
    "attn_dropout_prob": 0.2,
    "mask_ratio": 0.2,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
}


class Reporting:
    """A data loader that reports what each batch trained when the trainer requests the next one."""

    def __init__(self, loader, model, turns):
        self.loader, self.model, self.turns = loader, model, turns

    def __iter__(self):
        for batch in self.loader:
            yield batch
            read, hidden = batch[self.model.MASK_ITEM_SEQ], batch[self.model.MASK_INDEX]
            tokens, targets = int((read != 0).sum()), int((hidden > 0).sum())
            self.turns.done(tokens=tokens, targets=targets, columns=read.numel())

    def __getattr__(self, name):
        return getattr(self.loader, name)


def main(log, name, batch_size, threads):
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "log"
        data.mkdir()
        columns = ["user_id:token", "item_id:token", "timestamp:float"]
        pd.DataFrame(np.load(log), columns=columns).to_csv(data / "log.inter", sep="\t", index=False)
        settings = {**SETTINGS, "data_path": folder, "checkpoint_dir": folder, "train_batch_size": batch_size}
        config = Config(model=name, dataset="log", config_dict=settings)
        init_seed(0, reproducibility=False)
        dataset = create_dataset(config)
        loader, _, _ = data_preparation(config, dataset)
    torch.set_num_threads(threads)
    model = get_model(name)(config, loader.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    reporting = Reporting(loader, model, turns)
    while True:
        trainer._train_epoch(reporting, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
