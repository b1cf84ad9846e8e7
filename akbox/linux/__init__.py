"""The Linux target: launch, filter, Landlock, interposers, enforcer (design 03)."""
