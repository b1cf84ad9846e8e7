"""The conformance kit: what akbox must refuse and what must go on working, as data, and what runs it.

One copy serves pytest (tests/conformance), `akbox test confinement` and scripts/conformance. A black box: the engine
starts the installed command and reads what it leaves; only evidence.py loads code of akbox, to read a log.
"""
