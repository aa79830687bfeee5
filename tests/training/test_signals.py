"""Exceptions of signals, and what becomes of them."""

import signal

import pytest

from cramming_train.errors import Interrupted
from cramming_train.signals import terminate_by_exception

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Whatever this process was started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception_and_handlers_come_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises((KeyboardInterrupt, Interrupted)), terminate_by_exception():
        signal.raise_signal(number)
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_error_that_took_the_place_of_a_signals(number):
    """As NumPy's tofile does, once in many thousand calls."""

    def lose_it():
        try:
            signal.raise_signal(number)
        except (KeyboardInterrupt, Interrupted):
            pass
        raise TypeError("expected str, bytes or os.PathLike object, not BufferedWriter")

    with pytest.raises(Interrupted) as caught, terminate_by_exception():
        lose_it()
    assert caught.value.signal_number == number


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with terminate_by_exception():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN


def test_other_errors_pass():
    with pytest.raises(ValueError, match="of its own"), terminate_by_exception():
        raise ValueError("of its own")
