"""What docs/freshness.md shows is what happens."""

import ast
import inspect
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "freshness.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
async def test_example_runs_as_it_stands(cache, example):
    code = compile(example, "docs/freshness.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ran = eval(code, {"cache": cache})
    if inspect.isawaitable(ran):
        await ran


def test_there_are_examples_of_every_way_to_invalidate():
    from llm_cache import LLMCache

    ways = set(inspect.signature(LLMCache.invalidate).parameters) - {"self"}
    named = {way for way in ways if any(re.search(rf"\b{way}=", e) for e in EXAMPLES)}
    assert ways - named == {"allow_partial"}
