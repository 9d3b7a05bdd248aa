# medquant for the reading room: predicts and scores with a model file. No torch, no training, no network, no root.
#
#   docker build -t medquant .
#   docker run --rm --read-only --tmpfs /tmp --network none --user "$(id -u):$(id -g)" -v "$PWD:/work" medquant predict model.mq scan.nii.gz mask.nii.gz
#
# For NVIDIA GPUs (adds torch, whose wheel brings CUDA; run with --gpus all):
#
#   docker build -t medquant:nvidia --build-arg VARIANT=nvidia .
#
# For a reproducible base give its digest: --build-arg BASE_DIGEST=sha256:...
ARG BASE_DIGEST=""

FROM debian:bookworm-slim${BASE_DIGEST:+@$BASE_DIGEST} AS python
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf

FROM python AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates g++ cmake ninja-build
RUN python3 -m venv /opt/medquant
ENV PATH=/opt/medquant/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt docker/predict-requirements.txt ./
RUN pip install -c constraints.txt -r predict-requirements.txt
# By its exact version and alone, so that nothing else decides which build of it is taken.
ARG VARIANT=cpu
RUN case "$VARIANT" in \
      cpu) ;; \
      nvidia) pip install "$(grep '^torch==' constraints.txt)" ;; \
      *) echo "VARIANT is $VARIANT, expected cpu or nvidia" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY medquant medquant
# Its dependencies are there already; those that only training uses are left out on purpose.
RUN pip install --no-deps . \
 # Installing goes on without the native library where it cannot be built; an image is not to.
 && cd / && python -c "from medquant.deploy.native import load_library; load_library()" && cd - \
 # Nothing here reports to anybody.
 && pip uninstall -y openvino-telemetry \
 && pip uninstall -y setuptools pip

FROM python
COPY --from=build /opt/medquant /opt/medquant
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin medquant
ENV PATH=/opt/medquant/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /work
HEALTHCHECK --interval=5m --timeout=2m CMD ["medquant", "doctor", "--quiet"]
ENTRYPOINT ["medquant"]
CMD ["--help"]
