"""What GPTCache and RedisVL serve by default, asked of their own packages.

They need an environment of their own, with other versions of what we depend on:

    python -m venv PEERS && PEERS/bin/pip install gptcache faiss-cpu sqlalchemy redisvl
    python -m benchmarks correctness --peers-python PEERS/bin/python …
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.correctness.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Peer:
    """What a package decided on each pair."""

    name: str
    """With its version."""
    served: Sequence[bool]


def ask(python: Path, cached: Vectors, asked: Vectors) -> list[Peer]:
    """Return what each peer does when *cached* is stored and *asked* comes, row by row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npy"
        np.save(path, np.stack([cached, asked]).astype(np.float32))
        ran = subprocess.run(  # noqa: S603 - the interpreter that the user named
            [python, "-c", _CHILD, str(path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,  # one of them writes where it runs
            timeout=600,
        )
    answers = json.loads(ran.stdout.splitlines()[-1])
    return [Peer(name, served) for name, served in answers.items()]


# GPTCache: its vector store, its evaluation and its acceptance rule (`adapter.adapt`). RedisVL:
# the default of its cache, on the cosine distance that RediSearch would return to it.
_CHILD = """
import inspect, json, sys
from importlib.metadata import version
import numpy as np
from gptcache.config import Config
from gptcache.manager.vector_data.base import VectorData
from gptcache.manager.vector_data.faiss import Faiss
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation
from redisvl.extensions.cache.llm import SemanticCache

cached, asked = np.load(sys.argv[1])
evaluation = SearchDistanceEvaluation()
least, most = evaluation.range()
enough = (most - least) * Config().similarity_threshold
served = []
for row, (a, b) in enumerate(zip(cached, asked)):
    index = Faiss(f"index-{row}", len(a), 1)
    index.mul_add([VectorData(id=row, data=a)])
    (found,) = index.search(b, 1)
    served.append(bool(evaluation.evaluation({}, {"search_result": found}) >= enough))
parameters = inspect.signature(SemanticCache.__init__).parameters
threshold = parameters["distance_threshold"].default
distances = 1 - (cached * asked).sum(axis=1)
print(json.dumps({
    f"GPTCache {version('gptcache')}, its defaults": served,
    f"RedisVL {version('redisvl')}, its default distance_threshold={threshold}":
        [bool(distance <= threshold) for distance in distances],
}))
"""
