"""PostgreSQL, Redis and SeaweedFS from wheels, as child processes."""
