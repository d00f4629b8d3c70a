"""Benchmarks: one script per question, one JSON row per measurement. Nothing imports this but the command line."""
