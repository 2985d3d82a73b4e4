"""Steps with torch and files, no SQL."""
