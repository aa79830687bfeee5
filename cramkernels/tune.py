"""``python -m cramkernels.tune``: time the launch configurations of attention on this card, and keep the fastest.

Candidates take turns, so that a card that warms up or is shared slows all of them alike; medians are compared. What is
chosen goes to a file in the user's cache folder, which the launchers of this card read when a program starts.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from collections.abc import Callable, Sequence

import torch

from cramkernels import configurations, tuned
from cramkernels.configurations import MASKED, MID_BACKWARD, PLAIN, Key, Tiling, kernel_of

TOKENS, WIDTH = 32768, 768  # of the timed problem: tokens, heads x head dim
MID, LONG = 512, 1024  # sequences of rows that are for any length
ROUNDS, CALLS = 7, 5  # a round times so many calls of each candidate together
MARGIN = 0.99  # of the table's time, which a candidate has to beat
Clock = Callable[[Callable[[], object]], float]


def problem(key: Key, device: torch.device, tokens: int = TOKENS) -> Callable[[], object]:
    """A call of the kernel on full sequences, with the options that the row is for: a rotation, unless it is for plain
    calls, and a mask of keys and dropout, if it is for those."""
    masked = key.kernel.endswith(MASKED)
    return call(key, device, tokens, rotated=not key.kernel.endswith(PLAIN), masked=masked, dropped=masked)


def call(
    key: Key, device: torch.device, tokens: int, rotated: bool, masked: bool, dropped: bool
) -> Callable[[], object]:
    """A call of a row's kernel on full sequences with these options."""
    backend, function = kernel_of(key).split(".")
    kernels = importlib.import_module(f"cramkernels.{backend}.attention")
    length = key.longest or (MID if key.kernel.startswith(MID_BACKWARD) else LONG)
    tokens, heads = max(tokens // length, 1) * length, max(WIDTH // key.head_dim, 1)
    half = torch.float16 if configurations.part_of(device) < 80 else torch.bfloat16
    dtype = half if key.bits == 16 else torch.float32
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(tokens, 3, heads, key.head_dim, generator=generator).to(device, dtype)
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    angles = torch.rand(length, key.head_dim // 2, generator=generator).to(device)
    rotation = (angles.cos(), angles.sin()) if rotated else (None, None)
    key_mask = torch.rand(tokens, generator=generator).to(device) < 0.9 if masked else None
    dropout = (0.1, torch.tensor([1], device=device)) if dropped else (0.0, None)
    options = length, *rotation, key_mask, None, key.head_dim**-0.5, *dropout
    if function.endswith("forward"):
        return lambda: kernels.attention_forward(qkv, cu_seqlens, *options)
    out, lse = kernels.attention_forward(qkv, cu_seqlens, *options)
    return lambda: kernels.attention_backward(out, qkv, out, lse, cu_seqlens, *options)


def times(key: Key, tilings: Sequence[Tiling], call: Callable[[], object], clock: Clock) -> dict[Tiling, float]:
    """The median of each configuration; those that do not compile or fit are left out."""
    samples: dict[Tiling, list[float]] = {}
    for tiling in tilings:
        try:
            with configurations.override(key, tiling):
                call()
        except Exception as error:  # whatever the compiler or the driver says of a tile that is too large
            print(f"  passed over {tuple(tiling)}: {str(error).splitlines()[0][:80] if str(error) else error!r}")
            continue
        samples[tiling] = []
    for _ in range(ROUNDS):
        for tiling, taken in samples.items():
            with configurations.override(key, tiling):
                taken.append(clock(call))
    return {tiling: statistics.median(taken) for tiling, taken in samples.items()}


def fastest(own: Tiling, measured: dict[Tiling, float]) -> Tiling:
    """The table's own configuration, unless another is faster by more than noise."""
    best = min(measured, key=measured.__getitem__, default=own)
    return own if own in measured and measured[best] > MARGIN * measured[own] else best


def cuda_clock(call: Callable[[], object]) -> float:
    """Milliseconds a call, on the current device's stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def tune(
    card: tuned.Card, device: torch.device, part: int, clock: Clock, keys: Sequence[Key], tokens: int = TOKENS
) -> dict[Key, Tiling]:
    """Time ``keys``, and store what was chosen so far after each."""
    choices: dict[Key, Tiling] = {}
    for number, key in enumerate(keys, 1):
        tilings = configurations.candidates(key, part)
        length = f"up to {key.longest} tokens" if key.longest else "any length"
        print(f"{number} of {len(keys)}: {key.kernel}, {key.bits} bits, head dim {key.head_dim}, {length}, "
              f"{len(tilings)} candidates", flush=True)  # fmt: skip
        own = configurations.ROWS[key, part]
        measured = times(key, tilings, problem(key, device, tokens), clock)
        choices[key] = fastest(own, measured)
        if own in measured and choices[key] != own:
            print(f"  {choices[key]}: {measured[choices[key]] / measured[own]:.2f} of the time of the table's {own}")
        tuned.store(card, choices)
    return choices


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m cramkernels.tune", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: the current one)")
    name = parser.parse_args(arguments).device
    if not torch.cuda.is_available():
        return _refused("there is no GPU here, and only a GPU can be timed: nothing was changed")
    try:
        device = torch.device(name)
        if device.type != "cuda":
            raise ValueError(f"got {name!r}, want cuda or cuda:N")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        major, minor = torch.cuda.get_device_capability(device)
    except (RuntimeError, ValueError, AssertionError) as error:
        return _refused(f"--device: {str(error).splitlines()[0]}")
    if (major, minor) < (7, 5):
        return _refused(f"the kernels are for sm_75 and later, not sm_{major}{minor}")
    card = tuned.Card(torch.cuda.get_device_name(device), 10 * major + minor, tuned.library_version())
    try:
        with torch.cuda.device(device), torch.no_grad():
            part = configurations.part_of(device)
            tune(card, device, part, cuda_clock, configurations.keys_of(part))
    except OSError as error:
        print(f"error: {card.path} cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was timed until then is kept", file=sys.stderr)
        return 130
    print(f"stored in {card.path}; delete it to go back to the table")
    return 0


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
