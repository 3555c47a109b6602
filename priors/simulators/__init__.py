"""Simulators of training data: a module is one, and goes by its file's name.

Each has `draw(rng, size) -> image (size, size) float32`, and states its `summary`, the `unit` of
its images, and whether `turns` (by right angles, and flips) leave them as likely as they were.
"""
