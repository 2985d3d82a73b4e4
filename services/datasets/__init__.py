"""Dataset versions, records and the subject index."""
