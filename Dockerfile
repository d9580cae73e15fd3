# Three images from one file: `api` (no torch), `worker` (torch for the CPU; TORCH=cuda for NVIDIA GPUs) and `vllm` (a
# worker with vLLM, for NVIDIA GPUs).

# A tag may move; docs/releasing.md says how to pin a digest (python:3.11-slim@sha256:...).
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS builder
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt && uv venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv

FROM builder AS api-builder
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --no-deps -c requirements/lock.txt -r requirements/api.txt
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY api api
COPY cli cli
COPY workers/__init__.py workers/__init__.py
RUN uv pip install --no-deps --build-constraints requirements/lock.txt --require-build-hashes . && uv pip check

FROM builder AS worker-builder
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --no-deps -c requirements/lock.txt -r requirements/worker.txt
ARG TORCH=cpu
# The lock has no torch. The CPU build comes without dependencies, from pip's own index if it has one, else from
# PyTorch's; TORCH=cuda installs CUDA's build with NVIDIA's libraries.
RUN --mount=type=cache,target=/root/.cache/pip <<'SH'
set -e
if [ "$TORCH" = cpu ]; then
  pip --python /opt/venv/bin/python install --no-deps torch==2.13.0+cpu \
    || pip --python /opt/venv/bin/python install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
else
  pip --python /opt/venv/bin/python install torch==2.13.0
fi
SH
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY api api
COPY cli cli
COPY workers workers
COPY penstock penstock
RUN uv pip install --no-deps --build-constraints requirements/lock.txt --require-build-hashes . && uv pip check

FROM builder AS vllm-builder
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --no-deps -r requirements/vllm.txt
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY api api
COPY cli cli
COPY workers workers
COPY penstock penstock
RUN uv pip install --no-deps --build-constraints requirements/lock.txt --require-build-hashes . && uv pip check

FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="LLM serving that never loses a request" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home penstock \
    && install -d -o 10001 -g 10001 /models /files
ARG VERSION=
LABEL org.opencontainers.image.version="${VERSION}"
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/penstock
ENTRYPOINT ["tini", "--", "penstock"]

FROM base AS api
COPY --from=api-builder /opt/venv /opt/venv
ENV PENSTOCK_HOST=0.0.0.0 PENSTOCK_FILES=/files TMPDIR=/files
VOLUME /files
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
CMD ["api"]

FROM base AS worker
COPY --from=worker-builder /opt/venv /opt/venv
# The code is read-only, so compiled kernels are kept in the volume. Machine code is for one type of CPU, so the build
# cannot bring it along.
ENV PENSTOCK_WORKER_HOST=0.0.0.0 PENSTOCK_WORKER_PORT=9100 HF_HOME=/models NUMBA_CACHE_DIR=/models/.kernels
VOLUME /models
EXPOSE 9100
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9100/health/ready', timeout=2)"]
CMD ["worker"]

# vLLM compiles kernels for the model at its first start, which needs a compiler, and keeps them beside the weights.
FROM base AS vllm
USER root
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001
COPY --from=vllm-builder /opt/venv /opt/venv
ENV PENSTOCK_WORKER_HOST=0.0.0.0 PENSTOCK_WORKER_PORT=9100 PENSTOCK_ENGINE=vllm HF_HOME=/models \
    VLLM_CACHE_ROOT=/models/.vllm TRITON_CACHE_DIR=/models/.triton XDG_CACHE_HOME=/models/.cache
VOLUME /models
EXPOSE 9100
HEALTHCHECK --interval=5s --timeout=3s --start-period=900s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9100/health/ready', timeout=2)"]
CMD ["worker"]
