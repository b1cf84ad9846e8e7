"""Where a run keeps what outlives a call: heap objects and budget snapshots. One interface, one module per database."""
