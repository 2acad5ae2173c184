"""One step of many images: what is fed, what is seen, what is sampled. Knows torch and no vLLM.

:class:`~zipar_vllm.decoding.decoder.ImageDecoder` runs steps over any causal model; the engine
gives it vLLM's, tests and benchmarks may give it a Hugging Face one.
"""
