"""Image model families: what each one needs around the transformer that vLLM runs.

One file per family; :func:`zipar_vllm.models.registry.load_image_model` picks the right one.
"""

from pathlib import Path

DEMO_PATH = Path(__file__).resolve().parent.parent / "demo"
"""Folder of the embedded model."""
