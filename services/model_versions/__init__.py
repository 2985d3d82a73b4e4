"""Models, versions, files, aliases and lineage."""
