"""GPTCache: `put` and `get` over its vector store for Redis; answers are in SQLite, its default.

Its calls block, so they run in threads, as an async application has to do.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from urllib.parse import urlsplit

import numpy as np
from gptcache import Cache, Config
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation
from protocol import Driver, serve


class GPTCache(Driver):
    async def open(self, url, *, dimensions, threshold, namespace):
        parts = urlsplit(url)
        self._vectors = {}
        self._any = np.eye(1, dimensions, dtype=np.float32)[0]
        self._folder = tempfile.mkdtemp()
        data = get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{self._folder}/answers.db"),
            VectorBase(
                "redis",
                host=parts.hostname,
                port=parts.port,
                dimension=dimensions,
                collection_name=namespace,
                # It is put before "doc:" and nothing between.
                namespace=f"{namespace}:",
            ),
        )
        self._cache = Cache()
        self._cache.init(
            pre_embedding_func=get_prompt,
            embedding_func=lambda text, **_: self._vectors.get(text, self._any),
            data_manager=data,
            similarity_evaluation=SearchDistanceEvaluation(max_distance=1.0),
            config=Config(similarity_threshold=threshold),
        )

    async def semantic_store(self, prompt, vector, answer):
        self._vectors[prompt] = np.array(vector, dtype=np.float32)
        await asyncio.to_thread(put, prompt, answer, cache_obj=self._cache)

    async def semantic_check(self, prompt, vector):
        self._vectors[prompt] = np.array(vector, dtype=np.float32)
        return await asyncio.to_thread(get, prompt, cache_obj=self._cache)

    async def close(self):
        shutil.rmtree(self._folder)


serve(GPTCache())
