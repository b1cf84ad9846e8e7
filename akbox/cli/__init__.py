"""The command line: one module per command group, arguments and printing only. What is decided is decided elsewhere."""
