"""Benchmarks and suites: features extracted once, cached, measured; resumable."""
