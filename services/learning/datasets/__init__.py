"""One file per dataset adapter."""
