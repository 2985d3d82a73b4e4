# Two images of one tree: `docker build --target gateway .` (gateway, control, migrations; no torch) and `--target worker` (torch, no gateway).
# The base is named by its exact version. A digest is the stronger name: take it from
#   docker buildx imagetools inspect python:3.11.14-slim-bookworm
# and pass it on: --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY locks/uv.txt locks/uv.txt
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --require-hashes -r locks/uv.txt
RUN /opt/uv/bin/uv venv --python /usr/local/bin/python3.11 /opt/venv

FROM builder AS gateway-packages
COPY locks/gateway.txt locks/gateway.txt
RUN --mount=type=cache,target=/var/cache/uv VIRTUAL_ENV=/opt/venv /opt/uv/bin/uv pip sync --require-hashes locks/gateway.txt

FROM builder AS worker-packages
COPY locks/worker.txt locks/worker.txt
RUN --mount=type=cache,target=/var/cache/uv VIRTUAL_ENV=/opt/venv /opt/uv/bin/uv pip sync --require-hashes locks/worker.txt

# The project runs from /app; its name and version are left there as package metadata, since building a wheel would need unlocked tools.
FROM builder AS metadata
COPY pyproject.toml .
RUN python -c "import pathlib, tomllib; p = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
d = pathlib.Path('/metadata') / f\"{p['name']}-{p['version']}.dist-info\"; d.mkdir(parents=True); \
(d / 'METADATA').write_text(f\"Metadata-Version: 2.1\\nName: {p['name']}\\nVersion: {p['version']}\\n\")"

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 lethe && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lethe
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LETHE_HOME=/tmp/lethe
WORKDIR /app
COPY LICENSE ./
COPY --from=metadata /metadata ./
COPY services services
COPY models_store models_store

FROM base AS gateway
COPY --from=gateway-packages /opt/venv /opt/venv
COPY api api
COPY control control
COPY migrations migrations
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
CMD ["uvicorn", "--factory", "api.app:from_environment", "--host", "0.0.0.0", "--port", "8080", "--log-level", "warning", "--no-server-header", "--timeout-graceful-shutdown", "5"]

FROM base AS worker
COPY --from=worker-packages /opt/venv /opt/venv
COPY worker worker
RUN python -m compileall -q .
ENV LETHE_WORKER__SCRATCH=/scratch OMP_NUM_THREADS=1
RUN install -d -o 10001 -g 10001 -m 0700 /scratch
USER 10001:10001
CMD ["celery", "-A", "worker.celery_app", "worker", "-Q", "cpu", "-c", "1", "--pool", "prefork", "-l", "WARNING"]
