"""Tests of the simulated Kraken."""
