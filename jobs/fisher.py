"""`ray job submit -- python jobs/fisher.py …`: `raymerge fisher`, with its options, on the job's cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["fisher", *sys.argv[1:]])
