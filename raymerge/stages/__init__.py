"""The stages of the pipeline: each finds its artifact in the output folder or makes it.

Whatever is committed is never made again, so a run that was cut off goes on where it was by the same command.
"""
