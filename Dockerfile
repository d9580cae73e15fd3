# Two images from one file: `api` (no torch) and `worker` (torch for the CPU; TORCH=cuda for NVIDIA GPUs).

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS builder
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir uv && uv venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements

FROM builder AS api-builder
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip compile -q pyproject.toml --extra otel -c requirements/lock.txt --no-header -o /tmp/api.txt \
    && uv pip install -r /tmp/api.txt
COPY shared shared
COPY api api
COPY cli cli
COPY workers/__init__.py workers/__init__.py
RUN uv pip install --no-deps .

FROM builder AS worker-builder
ARG TORCH=cpu
# The CPU build comes from PyTorch's own index, or from wherever pip is told to find one; never CUDA unless asked.
RUN --mount=type=cache,target=/root/.cache/pip <<'SH'
set -e
if [ "$TORCH" = cpu ]; then
  pip --python /opt/venv/bin/python install -c requirements/lock.txt torch==2.13.0+cpu \
    || pip --python /opt/venv/bin/python install -c requirements/lock.txt \
         --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
else
  pip --python /opt/venv/bin/python install -c requirements/lock.txt torch==2.13.0
fi
SH
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip compile -q pyproject.toml --extra torch --extra otel -c requirements/lock.txt --no-emit-package torch --no-header \
      -o /tmp/worker.txt && uv pip install --no-deps -r /tmp/worker.txt
COPY shared shared
COPY api api
COPY cli cli
COPY workers workers
RUN uv pip install --no-deps .

FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="LLM serving that never loses a request" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home penstock \
    && install -d -o 10001 -g 10001 /models /files
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
ENV PENSTOCK_WORKER_HOST=0.0.0.0 PENSTOCK_WORKER_PORT=9100 HF_HOME=/models
VOLUME /models
EXPOSE 9100
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9100/health/ready', timeout=2)"]
CMD ["worker"]
