"""One thread for linear algebra that is too small to share out."""

from __future__ import annotations

from contextlib import AbstractContextManager


def one_thread() -> AbstractContextManager[object]:
    """Limits BLAS and OpenMP to one thread inside.

    The products of a linear probe or of a 512 × 512 eigenproblem take milliseconds; two threads that meet after each of
    them gain little on an idle machine, and on a busy one they spin for each other: a fit of 2,000 × 512 features was
    seen to take 45 to 104 s with two threads and 4.5 s with one.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    limits: AbstractContextManager[object] = threadpool_limits(limits=1)
    return limits
