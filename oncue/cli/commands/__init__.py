"""Commands of `oncue`, one file per command, imported when the command is used."""
