"""What the demonstration asks: new questions, other wordings of old ones, and repeats."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle

# A new question, a rephrased one, or a repeated one: roughly what a help desk hears.
_RHYTHM = "NNRERNRRER"


def faq() -> dict[str, list[str]]:
    """Return the questions that people ask, each with the ways in which they ask it."""
    lines = files("llm_cache").joinpath("_data", "faq_groups.jsonl").read_text("utf-8")
    wordings: dict[str, list[str]] = {}
    for line in lines.splitlines():
        row = json.loads(line)
        wordings.setdefault(row["group"], []).append(row["text"])
    return wordings


def script(wordings: Mapping[str, Sequence[str]], *, count: int, seed: int) -> list[str]:
    """Return *count* prompts in the order in which they are asked.

    The same for the same *seed*, and of two counts the shorter is the beginning of the longer.
    Which of them a cache can answer is left to the cache.
    """
    asking = _Asking(random.Random(seed), _shuffled(wordings, seed))  # noqa: S311 - no secret
    return [asking.next(kind) for kind, _ in zip(cycle(_RHYTHM), range(count), strict=False)]


def _shuffled(wordings: Mapping[str, Sequence[str]], seed: int) -> list[list[str]]:
    order = random.Random(seed)  # noqa: S311
    groups = [list(texts) for texts in wordings.values()]
    for texts in groups:
        order.shuffle(texts)
    order.shuffle(groups)
    return groups


@dataclass
class _Asking:
    """Who asks, what is still new to them, and what they have asked."""

    choice: random.Random
    new: list[list[str]]
    begun: list[list[str]] = field(default_factory=list)
    """Wordings not yet used of the questions already asked."""
    asked: list[str] = field(default_factory=list)

    def next(self, kind: str) -> str:
        """Return the next prompt, of this *kind* as long as there is one."""
        if kind == "E" or not (self.new or self.begun):
            prompt = self.choice.choice(self.asked)
        else:
            rephrased = self.begun and (kind == "R" or not self.new)
            prompt = self._rephrased() if rephrased else self._new()
        self.asked.append(prompt)
        return prompt

    def _new(self) -> str:
        first, *others = self.new.pop()
        self.begun.append(others)
        return first

    def _rephrased(self) -> str:
        texts = self.choice.choice(self.begun)
        prompt = texts.pop()
        if not texts:
            self.begun.remove(texts)
        return prompt
