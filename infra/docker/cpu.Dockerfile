# syntax=docker/dockerfile:1
# One project's image for nodes without a GPU. From the root of the repository:
#   docker build -f infra/docker/cpu.Dockerfile --build-arg PROJECT=torch-ddp-train \
#       -t ray-ref/torch-ddp-train:2.60.0-cpu .
# The tag begins with Ray's version, which must be the manifests' rayVersion. Everything is installed
# here, from the project's lock; at run time there is no pip.
FROM python:3.11.14-slim-bookworm AS build
ARG PROJECT=torch-ddp-train
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY projects/${PROJECT}/requirements.lock .
# A lock holds no local versions: the builds of torch without CUDA, 3 GB less, satisfy it too.
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir \
    --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.lock
COPY shared shared
COPY projects/${PROJECT} project
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps ./shared ./project

FROM python:3.11.14-slim-bookworm
# `ray up` copies files into the container with rsync, and its login shell has a PATH of its own.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends rsync=3.* \
    && rm -rf /var/lib/apt/lists/* \
    && python -m pip uninstall --yes pip setuptools wheel \
    && useradd --uid 1000 --user-group --create-home --shell /bin/bash ray \
    && echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && install --directory --owner=ray --group=ray /mnt/runs
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
# By number, or Kubernetes could not tell that it is not root.
USER 1000:1000
WORKDIR /home/ray
CMD ["ray", "--version"]
