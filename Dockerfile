# Without a GPU:
#     docker build --tag raygauss .
#     docker run --rm -it -p 7007:7007 -v "$PWD:/workspace" raygauss \
#         ns-train raygauss --viewer.websocket-host 0.0.0.0 --data DIR
# With NVIDIA's driver and container toolkit (PyTorch brings CUDA's libraries, Triton needs the C compiler):
#     docker build --tag raygauss-gpu --build-arg TORCH_BACKEND=cu128 .
#     docker run --rm -it --gpus all --shm-size 8g -p 7007:7007 -v "$PWD:/workspace" raygauss-gpu ns-train ...
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev libgl1 libgomp1 libusb-1.0-0 libx11-6 \
    && rm -rf /var/lib/apt/lists/*

# A name that uv knows: cpu, cu126, cu128, ...
ARG TORCH_BACKEND=cpu
# The sources come without their history, which has the version.
ARG VERSION=0.1.dev0
COPY . /source
RUN pip install --no-cache-dir uv \
    && SETUPTOOLS_SCM_PRETEND_VERSION_FOR_RAYGAUSS_HARDMINE="${VERSION}" \
        uv pip install --system --no-cache --torch-backend="${TORCH_BACKEND}" /source \
    && rm -rf /source

# nerfstudio's own imports warn of what is deprecated.
ENV PYTHONWARNINGS=ignore::FutureWarning
WORKDIR /workspace
EXPOSE 7007
CMD ["ns-train", "--help"]
