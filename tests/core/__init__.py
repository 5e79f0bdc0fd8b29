"""Tests of the parts without I/O."""
