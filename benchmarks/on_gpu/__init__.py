"""All measurements that need a GPU, in order of worth, as one command: ``python -m benchmarks.on_gpu``.

A run has a time limit, and so has each step. A step's record is written as soon as the step is done; a run that was
killed continues with the steps that are not done. ``benchmarks/on_gpu.md`` describes how to run it.
"""
