"""The authority calls, one module per family; `table.CALLS` is what the pipeline looks them up in."""
