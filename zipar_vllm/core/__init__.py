"""Pure ZipAR logic: grids, ready sets, visibility, sampling and the reference decoder.

Nothing in this package imports vLLM or any other package of the project.
"""
