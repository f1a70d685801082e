"""Benchmarks of convx against other libraries: ``python -m benchmarks --help`` from the checkout."""
