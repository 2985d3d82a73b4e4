"""The command `lethe`: a client over HTTP, and the embedded stack."""
