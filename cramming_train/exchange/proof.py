"""The proof of an export: the written folder is loaded by transformers, and gives the logits of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cramming_train.errors import RunError, UsageError
from cramming_train.model import MaskedLM

# Of the largest logit or of 1, whichever is more: rounding in fp32. Tests hold small models to 1e-5; sharp attention,
# and ModernBERT's angles, which it computes in fp32, cost a trained model of many layers more than that.
TOLERANCE = 1e-4
SEED = 0


def stock_library() -> Any:
    """The package transformers, quiet; UsageError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UsageError("the package transformers is not installed: pip install 'cramkernels[hf]'") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@torch.no_grad()
def prove(folder: Path, model: MaskedLM, custom_code: bool) -> float:
    """The largest difference of two logits, on random rows of three lengths, padded in one batch there.

    Raises:
        RunError: a tensor was not loaded, or the logits differ by more than rounding.
    """
    model_class = stock_library().AutoModelForMaskedLM
    if custom_code:
        from cramming_train.exchange.modeling_cram import CramForMaskedLM as model_class  # the file that was copied
    loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    wrong = sorted(str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind])
    if wrong:
        raise RunError(f"the export failed its proof and was not kept: {wrong[0]} was not loaded as it was written")
    longest = model.architecture.max_length
    lengths = sorted({longest, max(longest // 2, 1), max(longest // 7, 1)}, reverse=True)
    generator = torch.Generator().manual_seed(SEED)
    rows = [torch.randint(0, model.vocab_size, (length,), generator=generator) for length in lengths]
    ids_BS = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_BS = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    theirs_BSV = loaded.eval()(input_ids=ids_BS, attention_mask=mask_BS).logits
    difference, largest = 0.0, 1.0
    for number, row in enumerate(rows):
        hidden = model.encoder(row, torch.tensor([0, len(row)], dtype=torch.int32), len(row))
        ours = model.logits(hidden)
        difference = max(difference, float((theirs_BSV[number, : len(row)] - ours).abs().max()))
        largest = max(largest, float(ours.abs().max()))
    if not difference <= TOLERANCE * largest:
        raise RunError(f"the export failed its proof and was not kept: logits differ by {difference:.1e}")
    return difference
