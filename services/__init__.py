"""The two towers (ledger, engine), the roof over them and the cellar below."""
