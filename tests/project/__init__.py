"""Tests of what is shipped: docs, packages, types; and of what the tests rely on."""
