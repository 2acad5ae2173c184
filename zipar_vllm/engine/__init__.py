"""ZipAR inside vLLM: scheduler, model runner, worker and the client that asks for images."""
