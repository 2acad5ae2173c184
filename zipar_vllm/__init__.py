"""Image generation with ZipAR inside vLLM."""
