"""From raw text to memory-mapped rows of tokens."""

from cramming_train.data.prepare import default_cache_dir, prepare_data
from cramming_train.data.store import PreparedData, Rows, open_prepared

__all__ = ["PreparedData", "Rows", "default_cache_dir", "open_prepared", "prepare_data"]
