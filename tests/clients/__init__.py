"""Tests of the adapters for exchange clients."""
