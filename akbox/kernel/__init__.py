"""The Authority Kernel: decides, accounts and logs for one run. Imports policy and store, never a target (design
02)."""
