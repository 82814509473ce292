"""What stands on top of the stack."""
