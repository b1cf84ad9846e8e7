"""Puts tests/ on the path, so that tests can use helper modules beside other tests (conformance.console)."""
