"""A public service and an internal one."""
