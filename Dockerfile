# Images of the two environments. docs/containers.md has the run lines, and what of this is proven.
#
#   docker build --target cpu --tag asymgrpo:cpu .    # trains the quick start when it is run
#   docker build --target gpu --tag asymgrpo:gpu .    # the last target, hence the one without --target, too

# Both targets begin with Python alone: the wheels bring CUDA's libraries and compiler, the driver comes from the host.
# The digest, of the index over all architectures, is what counts; the tag in front of it is for readers.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON_IMAGE} AS base

# All caches are in one place, so that one volume keeps models, data sets and compiled kernels.
ENV PATH=/app/.venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    ASYMGRPO_CACHE=/cache/asymgrpo \
    FLASHINFER_WORKSPACE_BASE=/cache \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton

# By number, as Kubernetes can see from it that this is not root (runAsNonRoot).
RUN useradd --create-home --uid 1000 --user-group app \
    && install --directory --owner=1000 --group=1000 /app /runs /cache
WORKDIR /app

FROM base AS cpu

# vLLM's CPU build links against libnuma. Debian keeps no older versions of a package, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
USER 1000:1000

# The environment first: it changes less often than the code, of which the editable install needs no more than this.
COPY --chown=1000:1000 requirements/cpu.lock requirements/
COPY --chown=1000:1000 tools/setup_venv.sh tools/
COPY --chown=1000:1000 pyproject.toml README.md LICENSE ./
COPY --chown=1000:1000 asymgrpo_app/__init__.py asymgrpo_app/version.py asymgrpo_app/
RUN tools/setup_venv.sh cpu

COPY --chown=1000:1000 . .
RUN asymgrpo --version \
    && python -c "import asymgrpo_app.cli.run, vllm, torch; assert torch.version.cuda is None"

ENTRYPOINT ["asymgrpo"]
CMD ["fit", "--config", "configs/quickstart.yaml", "--run_dir", "/runs/quickstart", "--ckpt_path", "last"]

FROM base AS gpu

# Triton compiles a launcher for each of its kernels with the C compiler when it is first used, and FlashInfer, which vLLM
# prefers on the newest GPUs, its kernels with nvcc of the wheels, which takes the C++ compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 1000:1000

# What NVIDIA's container toolkit is to bring in from the host.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY --chown=1000:1000 requirements/gpu.lock requirements/
COPY --chown=1000:1000 tools/setup_venv.sh tools/
COPY --chown=1000:1000 pyproject.toml README.md LICENSE ./
COPY --chown=1000:1000 asymgrpo_app/__init__.py asymgrpo_app/version.py asymgrpo_app/
RUN tools/setup_venv.sh gpu

COPY --chown=1000:1000 . .
RUN asymgrpo --version \
    && python -c "import asymgrpo_app.cli.run, vllm, torch; assert torch.version.cuda"

ENTRYPOINT ["asymgrpo"]
CMD ["--help"]
