"""`ray job submit -- python jobs/train.py …`: `raymerge train`, with its options, on the job's cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
