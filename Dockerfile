# The image of driver, workers and schedule: for GPUs, or with DEVICE=cpu for none. docs/operations.md says more.
#
#   docker buildx imagetools inspect python:3.11-slim-bookworm        # its digest, which every build names
#   docker buildx build --build-arg BASE_DIGEST=sha256:… -t batch-pipelines:0.1.0-gpu --sbom=true --provenance=mode=max .
#   docker buildx build --build-arg BASE_DIGEST=sha256:… --build-arg DEVICE=cpu --build-arg WEIGHTS=embedded \
#     -t batch-pipelines:0.1.0-cpu --sbom=true .
#
# --sbom=true attaches the bill of materials; `docker buildx imagetools inspect IMAGE --format '{{ json .SBOM }}'` reads it.
# Packages from a mirror: `--secret id=uv,src=uv.toml`, which leaves nothing in a layer.

ARG BASE_IMAGE=python:3.11-slim-bookworm
# No default: an image that is built again must be the same, and a tag moves. Without it the build ends at once.
ARG BASE_DIGEST
# gpu or cpu
ARG DEVICE=gpu
# Of the model: none (mounted, or fetched from s3://), embedded (the demo's, with DEVICE=cpu), or hub (MODEL, MODEL_REVISION)
ARG WEIGHTS=none

FROM ${BASE_IMAGE}@${BASE_DIGEST} AS base

# ---- what an engine needs of the operating system, and nothing else

FROM base AS system-cpu
# vLLM's CPU build links libnuma.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 \
 && rm -rf /var/lib/apt/lists/*

FROM base AS system-gpu
# The one compiler, and only here: Triton compiles its way to the driver at its first use and ends without one ("Failed
# to find C compiler", triton/runtime/build.py in 3.7.1), and what vLLM's kernels compile just in time is C++. vLLM's own
# requirements bring nvcc besides.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
# CUDA comes with torch's packages; the driver, with the node: these two parts of it.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

# ---- packages: exactly requirements/image-*.lock, which are requirements/*.lock without the developers' tools

FROM base AS index-cpu
# Where uv finds torch's CPU build.
ENV UV_TORCH_BACKEND=cpu

FROM base AS index-gpu

# hadolint ignore=DL3006
FROM index-${DEVICE} AS packages
ARG DEVICE
WORKDIR /app
COPY requirements/image-${DEVICE}.lock image.lock
RUN --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    python -m venv --without-pip venv \
 && pip install --no-cache-dir uv==0.13.9 \
 && uv pip sync --no-cache --compile-bytecode --python venv/bin/python image.lock

# ---- weights

FROM packages AS weights-none
RUN mkdir /models

FROM packages AS weights-embedded
COPY actors actors
COPY pipelines pipelines
COPY demo demo
RUN XDG_CACHE_HOME=/made venv/bin/python -m demo.model \
 && mv /made/batch-pipelines/models /models

FROM packages AS weights-hub
ARG MODEL
ARG MODEL_REVISION
# A folder named as the model, for model.path=/models/NAME; safetensors alone, since pickles are code.
RUN --mount=type=secret,id=hf_token \
    HF_TOKEN_PATH=/run/secrets/hf_token venv/bin/hf download "${MODEL}" --revision "${MODEL_REVISION}" \
      --include "*.safetensors" "*.json" "*.jinja" "*.txt" "*.model" --local-dir "/models/${MODEL##*/}" \
 && rm -rf "/models/${MODEL##*/}/.cache"

# hadolint ignore=DL3006
FROM weights-${WEIGHTS} AS weights

# ---- the image

# hadolint ignore=DL3006
FROM system-${DEVICE} AS image
ARG DEVICE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="batch-pipelines" \
      org.opencontainers.image.description="LLM batch inference on Ray and vLLM, ${DEVICE}" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# By number, so that Kubernetes can see that it is not root. /work is where a run starts and writes its log.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin runner \
 && mkdir /work /cache \
 && chown 10001:10001 /work /cache
COPY --from=packages /app/venv /app/venv
COPY --from=weights /models /models
COPY LICENSE /app/LICENSE
COPY actors /app/actors
COPY conf /app/conf
COPY demo /app/demo
COPY pipelines /app/pipelines
COPY k8s/bin /app/k8s/bin
# All that is written at run time goes below /tmp, /work and /cache: the rest of the file system may be read-only.
ENV PATH=/app/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    XDG_CONFIG_HOME=/cache/config \
    HF_HOME=/cache/huggingface \
    VLLM_CACHE_ROOT=/cache/vllm \
    VLLM_CONFIG_ROOT=/cache/config/vllm \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    FLASHINFER_WORKSPACE_BASE=/cache \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["python", "-m", "pipelines.run"]
CMD ["--help"]
