# The studio in a container:
#
#   docker build -t piti .                                                       # for CPUs
#   docker build -t piti --build-arg DEVICE=cuda .                               # for NVIDIA GPUs; run with --gpus all
#   docker run --rm -p 127.0.0.1:7860:7860 piti                                  # then open http://localhost:7860
#
# TORCH_INDEX: an index of PyTorch's own builds, as its installation page names them: the one for CPUs makes a far
# smaller image. Without it, pip's usual build is taken, which knows both. Whoever reaches the port uses the studio: it
# asks for no password. Behind another name give that: docker run … piti --allow-host NAME
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG DEVICE=cpu
ARG TORCH_INDEX=""
ENV PITI_DEVICE=${DEVICE} \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/home/piti/models

RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.5.1"

WORKDIR /app
COPY pyproject.toml constraints.txt PACKAGE.md LICENSE ./
COPY piti ./piti
RUN pip install -c constraints.txt ".[ui,text]"

RUN useradd --create-home piti
USER piti
WORKDIR /home/piti

# Models of the hub stay here between containers: docker run -v piti-models:/home/piti/models …
RUN mkdir models
VOLUME /home/piti/models

EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/healthz')"]
ENTRYPOINT ["sh", "-c", "exec piti studio --host 0.0.0.0 --port 7860 --device \"$PITI_DEVICE\" \"$@\"", "studio"]
