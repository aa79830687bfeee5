"""Deterministic algorithms, under which the cases run, want this of cuBLAS before its first call."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
