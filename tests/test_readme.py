"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

from llm_cache import CacheConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found
    return found[1]


def test_first_example_prints_what_stands_below_it(tmp_path):
    script = tmp_path / "example.py"
    script.write_text(block("python"), encoding="utf-8")

    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=True
    )

    assert ran.stderr == ""
    assert ran.stdout == block("text")


def test_every_setting_is_in_the_table():
    table = README.partition("## Configuration")[2].partition("| embedder")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert set(CacheConfig.__dataclass_fields__) <= named


def test_index_statement_in_the_docs_is_the_one_in_the_code():
    from llm_cache._redis import vectors

    def words(text: str) -> str:
        return re.search(r"NOOFFSETS.*?EF_CONSTRUCTION \d+", " ".join(text.split()))[0]  # type: ignore[index]

    docs = words((ROOT / "docs" / "data-model.md").read_text(encoding="utf-8"))
    assert docs.replace("<dimensions>", "<dims>") == words(vectors.__doc__ or "")
