"""Benchmarks, and the tables made from what they measured."""
