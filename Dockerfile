# syntax=docker/dockerfile:1
#
#   docker build -t zipar-vllm .                    NVIDIA GPUs, on vLLM's own image
#   docker build -t zipar-vllm:cpu --target cpu .   x86-64 CPUs
#
# Both serve the embedded model unless another is named: docker run ... zipar-vllm MODEL [options].

FROM python:3.12-slim AS wheel
WORKDIR /src
RUN pip install --no-cache-dir setuptools==78.1.1
COPY pyproject.toml README.md LICENSE ./
COPY zipar_vllm zipar_vllm
COPY server server
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .


FROM python:3.11-slim AS cpu
# libnuma, libgomp: vLLM. g++: our attention kernel and torch.compile. tcmalloc: vLLM asks for it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 2000 --gid 0 --create-home vllm
# The lock is complete, and --no-deps keeps out torchvision, which must not be beside a CPU torch.
COPY requirements/cpu.txt /tmp/cpu.txt
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
        "$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' /tmp/cpu.txt)" \
    && pip install --no-cache-dir --no-deps -r /tmp/cpu.txt
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps /tmp/dist/*.whl \
    && mkdir -p /cache /pictures \
    && chown 2000:0 /cache /pictures \
    && chmod g+rwX /cache /pictures
ENV XDG_CACHE_HOME=/cache \
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_PLUGINS=zipar,zipar_images
USER 2000:0
WORKDIR /home/vllm
# The build fails if a family cannot be imported, or the embedded model cannot draw.
RUN --mount=type=bind,source=deploy/check_models.py,target=/tmp/check_models.py \
    python3 /tmp/check_models.py /tmp/picture.png && rm /tmp/picture.png
EXPOSE 8000
VOLUME ["/cache", "/pictures"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["zipar", "serve"]
CMD ["--shutdown-timeout", "60"]


FROM vllm/vllm-openai:v0.32.0 AS cuda
USER 0
# --no-deps: the image holds vLLM 0.32.0 and all that it and we need, in the versions it was built with.
COPY --from=wheel /dist /tmp/dist
RUN python3 -m pip install --no-cache-dir --no-deps /tmp/dist/*.whl \
    && python3 -c "import server, vllm, zipar_vllm; assert vllm.__version__.startswith('0.32.0')" \
    && mkdir -p /cache /pictures \
    && chown 2000:0 /cache /pictures \
    && chmod g+rwX /cache /pictures
ENV HOME=/home/vllm \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    FLASHINFER_WORKSPACE_BASE=/cache/flashinfer \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_PLUGINS=zipar,zipar_images
USER 2000:0
WORKDIR /home/vllm
# The build fails if a family cannot be imported, or the embedded model cannot draw.
RUN --mount=type=bind,source=deploy/check_models.py,target=/tmp/check_models.py \
    python3 /tmp/check_models.py /tmp/picture.png && rm /tmp/picture.png
EXPOSE 8000
VOLUME ["/cache", "/pictures"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["zipar", "serve"]
CMD ["--shutdown-timeout", "60"]
