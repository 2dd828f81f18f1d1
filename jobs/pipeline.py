"""`ray job submit -- python jobs/pipeline.py …`: `raymerge run`, with its options, on the job's cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
