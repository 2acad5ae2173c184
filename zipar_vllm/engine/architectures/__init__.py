"""Model classes that vLLM lacks, one file each; imported where such a model is loaded."""

ARCHITECTURES = {
    "Emu3ForCausalLM": f"{__name__}.emu35:Emu35ForImageGeneration",
    "Emu3ForConditionalGeneration": f"{__name__}.emu3:Emu3ForImageGeneration",
    "JanusForConditionalGeneration": f"{__name__}.janus:JanusForImageGeneration",
    "LlamaGenForImageGeneration": f"{__name__}.llamagen:LlamaGenForImageGeneration",
    "LlamaGenForTextToImage": f"{__name__}.llamagen:LlamaGenForImageGeneration",
    "ChameleonForConditionalGeneration": f"{__name__}.lumina:LuminaForImageGeneration",
    "ChameleonXLLMXForConditionalGeneration": f"{__name__}.lumina:LuminaForImageGeneration",
}
"""vLLM model class by the architecture that ``config.json`` names.

They take the place of vLLM's in engines started with
:func:`~zipar_vllm.engine.arguments.engine_arguments` alone, by ``model_class_overrides``.
"""
