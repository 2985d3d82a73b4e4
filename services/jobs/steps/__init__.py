"""Steps with SQL and S3, no torch."""
