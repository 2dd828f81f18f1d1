"""`ray job submit -- python jobs/evaluate.py …`: `raymerge evaluate`, with its options, on the job's cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
