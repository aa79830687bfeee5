"""The encoder and its masked-LM head. Packed tokens end to end; every fused operation comes from cramkernels."""

from cramming_train.model.counting import flops_per_token, parameter_count
from cramming_train.model.encoder import Encoder
from cramming_train.model.masked_lm import MaskedLM, build_model
from cramming_train.model.sequences import sequence_boundaries
from cramming_train.model.unigram import start_at_unigram

__all__ = [
    "Encoder",
    "MaskedLM",
    "build_model",
    "flops_per_token",
    "parameter_count",
    "sequence_boundaries",
    "start_at_unigram",
]
