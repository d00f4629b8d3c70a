"""The fuzz target: files changed at random, fed to everything that reads a foreign file, under a limit and an oracle.

    PYTHONPATH=tests python -m fuzz --inputs 100000

An input passes if it is read, or refused with an `EngineError`; nothing may be written outside the cache, no input may
take the memory or the time of the machine. See `python -m fuzz --help`.
"""
