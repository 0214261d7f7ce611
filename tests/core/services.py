"""What stands for the service of a model where nothing is asked of it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Service:
    """A model's service, as far as a key has to do with it."""

    base_url: str
    defaults: dict[str, Any] = field(default_factory=dict)
    timeout: None = None

    @property
    def identity(self) -> str:
        return self.base_url
