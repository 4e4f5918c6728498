"""Where the time of a trial goes; `bench.trial` measures it too, beside the notebook."""

from bench.trial import run_alone as run

__all__ = ["run"]
