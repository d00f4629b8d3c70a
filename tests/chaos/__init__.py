"""The kill campaign: processes that train or pack are killed with SIGKILL at any moment, then resumed until done.

    PYTHONPATH=tests python -m chaos --kills 200

What must hold: no checkpoint that was reported as saved is lost, no cache entry is unreadable, every resumed run ends
with bitwise the weights, the optimizer and the log of a run that was never stopped. See `python -m chaos --help`.
"""
