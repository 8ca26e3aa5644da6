# syntax=docker/dockerfile:1
# One project's image for nodes with NVIDIA GPUs. From the root of the repository:
#   docker build -f infra/docker/gpu.Dockerfile --build-arg PROJECT=torch-ddp-train \
#       -t ray-ref/torch-ddp-train:2.60.0-gpu .
# As cpu.Dockerfile, but with the libraries of CUDA: they come as packages that torch and TensorFlow
# ask for, each in the version that it was built with. Only the driver is the node's.
FROM python:3.11.14-slim-bookworm AS build
ARG PROJECT=torch-ddp-train
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY projects/${PROJECT}/requirements.lock .
# torch brings CUDA along; TensorFlow does when it is asked to.
RUN if [ "$PROJECT" = tf-train ]; then \
        sed -i 's/^tensorflow==/tensorflow[and-cuda]==/' requirements.lock; \
    fi \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir -r requirements.lock
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
# The last two: which GPUs and which parts of the driver NVIDIA's container runtime lets in.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# By number, or Kubernetes could not tell that it is not root.
USER 1000:1000
WORKDIR /home/ray
CMD ["ray", "--version"]
