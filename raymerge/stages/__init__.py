"""The stages of the pipeline: each finds its artifact in the output folder or makes it.

What is committed is never made again, so repeating the command of an interrupted run resumes it.
"""
