"""Puts tests/ on the path, so that the integration tests can use the conformance kit's worlds and engine."""
