"""`ray job submit -- python jobs/fisher_study.py …`: `raymerge fisher-study`, with its options, on its cluster."""

import sys

from raymerge.cli import main

if __name__ == "__main__":
    main(["fisher-study", *sys.argv[1:]])
