"""`ray job submit -- python jobs/prepare.py …`: `raymerge prepare`, with its options, on the job's cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
