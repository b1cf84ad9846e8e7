"""Policies: what an agent may do, as data. Loading, compiling and explaining; see docs/architecture.md."""
