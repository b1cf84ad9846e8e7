"""akbox: a sandbox and authority kernel for AI agents on Linux."""

__version__ = "0.1.0"
