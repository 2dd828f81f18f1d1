"""`ray job submit -- python jobs/merge.py …`: `raymerge merge`, with its options, on the job's cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
