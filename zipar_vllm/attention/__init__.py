"""Attention over partly written KV slots: the mask and the kernels that apply it."""
