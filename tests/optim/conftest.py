"""One thread, as for the models."""

from tests.model.conftest import one_thread

__all__ = ["one_thread"]
