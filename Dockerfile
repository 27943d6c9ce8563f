# raft with vLLM's CUDA build: docker build -t raft . && docker run --gpus all -v "$PWD:/work" raft run my-run.yaml
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3.12-venv python3.12-dev gcc g++ wget \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/raft && /opt/raft/bin/pip install --no-cache-dir uv
COPY pyproject.toml README.md LICENSE /src/
COPY raft /src/raft
COPY recipes /src/recipes
# ray[default] and wget are for clusters (docs/cluster): the launcher, jobs, and KubeRay's probes
RUN /opt/raft/bin/uv pip install --no-cache --compile-bytecode --python /opt/raft/bin/python "/src[cuda,ray,trl]" "ray[default]"
ENV PATH=/opt/raft/bin:$PATH
WORKDIR /work
ENTRYPOINT ["raft"]
