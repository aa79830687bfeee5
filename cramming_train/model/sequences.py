"""Which tokens may attend to each other: whole rows, or the documents within them."""

from __future__ import annotations

import torch

from cramming_train.data.special_tokens import SEP_ID


def sequence_boundaries(ids_BS: torch.Tensor, *, document_attention: bool) -> tuple[torch.Tensor, int]:
    """(cu_seqlens int32, max_seqlen) of B full rows of S tokens.

    With ``document_attention`` a sequence ends after every <sep>, which is where documents end, and at the row's end.
    The number of sequences then depends on the values, so call this on the CPU, before the rows go to the device.
    """
    rows, length = ids_BS.shape
    if not document_attention:
        return torch.arange(0, rows * length + 1, length, dtype=torch.int32), length
    is_last = ids_BS == SEP_ID
    is_last[:, -1] = True
    ends = is_last.reshape(-1).nonzero().squeeze(1) + 1
    return torch.cat([ends.new_zeros(1), ends]).to(torch.int32), length
