"""The profile of `make test-faults`."""

from hypothesis import settings

settings.register_profile("thorough", max_examples=2_000)
