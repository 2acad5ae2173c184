"""The recipe of the embedded demo model, from drawings on npm to the files in zipar_vllm/demo."""
