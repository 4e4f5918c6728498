"""What ``qa-hpo check`` prints of a study's costs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qa_hpo.printing import print_line
from qa_hpo.workers.local import Place

if TYPE_CHECKING:
    from qa_hpo.checking import Forecast, Plan, Space, Time

__all__ = ["describe_places", "print_forecast"]


def print_forecast(forecast: "Forecast") -> None:
    """Print what a study will cost, a line for each thing."""
    alike: dict[str, list[str]] = {}
    for name in forecast.parameters:
        alike.setdefault(_start(forecast, name), []).append(name)
    for words, names in alike.items():
        print_line(f"from {', '.join(names)}: {words}")
    print_line(f"budget: {_plan(forecast.plan)}")
    print_line(f"workers: {describe_places(forecast.places)}")
    for space in forecast.disk:
        print_line(f"disk: {_space(space)}")
    if forecast.time is not None:
        _print_time(forecast.time, len(forecast.places))
    elif forecast.not_timed is not None:
        print_line(f"time: not timed: {forecast.not_timed}")


def describe_places(places: Sequence[Place]) -> str:
    """Return in words where workers compute."""
    if places[0].threads is not None:
        return f"{len(places)} on the CPU, with {_threads(places[0].threads)} each"
    return f"{len(places)}, on GPU {', '.join(place.device for place in places)}"


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _start(forecast: "Forecast", name: str) -> str:
    parameters, windows = forecast.parameters[name], forecast.windows[name]
    cut = ", ".join(f"{count:,} at doc_stride {stride}" for stride, count in windows.items())
    return (
        f"{parameters:,} parameters, {_size(4 * parameters)} of weights, {_size(16 * parameters)} "
        f"with gradients and optimizer; windows: {cut} for training, "
        f"{forecast.evaluation_windows[name]:,} for evaluation"
    )


def _plan(plan: "Plan") -> str:
    low, high = plan.epochs_low, plan.epochs_high
    each = f"{low}" if low == high else f"{low} to {high}"
    if plan.promoted:
        each = f"up to {each}"
    if plan.trials is None:
        return f"trials of {each} epochs, as many as the hours allow"
    line = f"about {plan.trials:,} trials of {each} epochs"
    if plan.baselines:
        line += f", {plan.baselines:,} of them baselines"
    line += f": about {plan.epochs:,} epochs"
    return line if plan.epochs_at_most is None else f"{line}, {plan.epochs_at_most:,} at most"


def _space(space: "Space") -> str:
    bound = "at least" if space.at_least else "up to"
    line = f"{bound} {_size(space.needed)} in {space.place}"
    if space.free is None:
        return line
    enough = "" if space.free >= space.needed else " (warning: that is not enough)"
    return f"{line}, where {_size(space.free)} are free{enough}"


def _print_time(time: "Time", workers: int) -> None:
    line = f"time: about {_duration(time.seconds)} with {workers} worker"
    line += "" if workers == 1 else "s"
    if time.limited_by_hours:
        line += ", when budget.hours are over"
    elif time.starts_s:
        line += f", {_duration(time.starts_s)} of it for building starts"
    if time.untimed:
        line += f", without what retention methods add ({', '.join(time.untimed)})"
    print_line(f"{line}. This is an estimate: no trial overfits, and others leave the host alone.")
    for pace in time.paces:
        threads = f", {_threads(pace.threads)}" if pace.device == "cpu" else ""
        print_line(
            f"  based on {pace.checkpoint} here ({pace.device}{threads}, {pace.precision}): "
            f"{pace.steps} training steps of {pace.batch_size} windows, {pace.step_s:.3g} s each; "
            f"{pace.evaluated:,} windows of evaluation, {1000 * pace.evaluation_s:.3g} ms each; "
            f"memory {pace.peak_memory_mib:,.0f} MiB at most"
        )


def _size(number: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("MiB", "GiB"):
        number /= 1024**2 if unit == "MiB" else 1024
        if number < 1024:
            break
    return f"{number:,.1f} {unit}"


def _duration(seconds: float) -> str:
    for most, divisor, unit in ((120, 1, "s"), (120 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < most:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
