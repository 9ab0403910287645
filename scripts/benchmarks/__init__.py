"""The benchmarks of `scripts/benchmark.py`."""
