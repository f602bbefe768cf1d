"""Benchmarks: each compares ckpt with its peers at one job, and is run by hand, never by a test."""
