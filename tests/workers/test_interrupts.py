import os
import signal
import sys
import time

import pytest

from processes import finished, start
from qa_hpo.workers import interrupts as module
from qa_hpo.workers.interrupts import Interrupts, ToldToEnd


def tell(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_comes_at_once(number: int) -> None:
    interrupts, after = Interrupts(), []
    before = signal.getsignal(number)

    def work() -> None:
        with interrupts.handled():
            tell(number)
            after.append("it did not come")

    with pytest.raises(ToldToEnd) as told:
        work()
    assert (told.value.signal, after) == (number, [])
    assert signal.getsignal(number) is before


def test_what_is_to_be_done_whole_is() -> None:
    interrupts, done = Interrupts(), []

    def work() -> None:
        with interrupts.handled(), interrupts.deferred():
            with interrupts.deferred():
                tell(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
            tell(signal.SIGTERM)  # more of them change nothing
            done.append("still")

    with pytest.raises(ToldToEnd):
        work()
    assert done == ["inner", "outer", "still"]


def test_an_error_within_is_not_hidden() -> None:
    interrupts = Interrupts()

    def work() -> None:
        with interrupts.handled(), interrupts.deferred():
            tell(signal.SIGTERM)
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        work()


def test_outages_are_not_waited_out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_WAIT_S", 0.3)
    interrupts = Interrupts()
    interrupts.wait(0.01)  # nobody has told anything

    def work() -> None:
        with interrupts.handled(), interrupts.deferred():
            tell(signal.SIGTERM)
            while True:
                interrupts.wait(0.05)

    begun = time.monotonic()
    with pytest.raises(ToldToEnd):
        work()
    assert 0.3 <= time.monotonic() - begun < 5


def test_a_signal_whose_exception_was_lost_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what a handler raises while an object is finalised."""
    interrupts, steps, dropped = Interrupts(), [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: dropped.append(told.exc_type))

    class Finalised:
        def __del__(self) -> None:
            tell(signal.SIGTERM)

    def work() -> None:
        with interrupts.handled():
            Finalised()
            steps.append("went on")
            interrupts.check()
            steps.append("did not end")

    with pytest.raises(ToldToEnd):
        work()
    assert (dropped, steps) == ([ToldToEnd], ["went on"])


def two_interrupts() -> None:
    interrupts = Interrupts()
    with interrupts.handled(), interrupts.deferred():
        tell(signal.SIGINT)
        tell(signal.SIGINT)
        os._exit(7)


def test_a_second_interrupt_ends_the_process() -> None:
    finished(start(two_interrupts), code=-signal.SIGINT)
