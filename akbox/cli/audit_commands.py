"""All commands of `akbox audit`: importing them puts them into the group."""

from akbox.cli import audit_export, audit_prove, audit_replay
from akbox.cli.audit import audit

__all__ = ["audit", "audit_export", "audit_prove", "audit_replay"]
