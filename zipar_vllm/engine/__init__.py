"""ZipAR decoding inside vLLM: scheduler, worker, attention backend and the client to them.

Importing anything of it checks vLLM's version first.
"""

from zipar_vllm.version import check_vllm_version

check_vllm_version()
