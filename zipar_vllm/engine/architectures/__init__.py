"""Model classes that vLLM lacks, one file each; imported where such a model is loaded."""

ARCHITECTURES = {
    "JanusForConditionalGeneration": f"{__name__}.janus:JanusForImageGeneration",
}
"""vLLM model class by the architecture that ``config.json`` names."""
